// FoldConstants
%3 = "graph.constant"() {value = dense<[1.000000e+00, 2.000000e+00, 4.000000e+00, 8.000000e+00]> : tensor<4xf32>} : () -> tensor<4xf32>
%4 = "graph.reciprocal"(%3) : (tensor<4xf32>) -> tensor<4xf32>
%5 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%6 = "graph.embedding"(%5, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%7 = "graph.constant"() {value = dense<2.000000e+00> : tensor<f32>} : () -> tensor<f32>
%8 = "graph.mul"(%4, %7) : (tensor<4xf32>, tensor<f32>) -> tensor<4xf32>
%9 = "graph.mul"(%6, %8) : (tensor<?x4xf32, "T">, tensor<4xf32>) -> tensor<?x4xf32, "T">
// -->
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.constant"() {value = dense<[2.000000e+00, 1.000000e+00, 5.000000e-01, 2.500000e-01]> : tensor<4xf32>} : () -> tensor<4xf32>
%6 = "graph.mul"(%4, %5) : (tensor<?x4xf32, "T">, tensor<4xf32>) -> tensor<?x4xf32, "T">
