// FoldIntoLeaves
%3 = "graph.constant"() {value = dense<2> : tensor<i32>} : () -> tensor<i32>
%4 = "graph.add"(%1, %3) : (tensor<?xi32, "T">, tensor<i32>) -> tensor<?xi32, "T">
%5 = "graph.weight"() {name = "position", sources = ["position"]} : () -> tensor<11x4xf32>
%6 = "graph.embedding"(%5, %4) {offset = 1 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%7 = "graph.weight"() {name = "conv", sources = ["conv"]} : () -> tensor<4x6xf32>
%8 = "graph.transpose"(%7) {permutation = array<i64: 1, 0>} : (tensor<4x6xf32>) -> tensor<6x4xf32>
%9 = "graph.linear"(%6, %8) : (tensor<?x4xf32, "T">, tensor<6x4xf32>) -> tensor<?x6xf32, "T">
// -->
%3 = "graph.weight"() {name = "position", sources = ["position"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %1) {offset = 3 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.weight"() {name = "conv", sources = ["conv"], transposed} : () -> tensor<6x4xf32>
%6 = "graph.linear"(%4, %5) : (tensor<?x4xf32, "T">, tensor<6x4xf32>) -> tensor<?x6xf32, "T">
