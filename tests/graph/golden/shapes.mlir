// SimplifyShapes
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x12xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x12xf32>, tensor<?xi32, "T">) -> tensor<?x12xf32, "T">
%5 = "graph.reshape"(%4) : (tensor<?x12xf32, "T">) -> tensor<?x3x4xf32, "T">
%6 = "graph.reshape"(%5) : (tensor<?x3x4xf32, "T">) -> tensor<?x2x6xf32, "T">
%7 = "graph.transpose"(%6) {permutation = array<i64: 0, 2, 1>} : (tensor<?x2x6xf32, "T">) -> tensor<?x6x2xf32, "T">
%8 = "graph.transpose"(%7) {permutation = array<i64: 0, 2, 1>} : (tensor<?x6x2xf32, "T">) -> tensor<?x2x6xf32, "T">
%9 = "graph.neg"(%8) : (tensor<?x2x6xf32, "T">) -> tensor<?x2x6xf32, "T">
%10 = "graph.concat"(%8, %9) {axis = 2 : i64} : (tensor<?x2x6xf32, "T">, tensor<?x2x6xf32, "T">) -> tensor<?x2x12xf32, "T">
%11 = "graph.slice"(%10) {axis = 2 : i64, size = 3 : i64, start = 0 : i64, step = 2 : i64} : (tensor<?x2x12xf32, "T">) -> tensor<?x2x3xf32, "T">
%12 = "graph.slice"(%11) {axis = 2 : i64, size = 2 : i64, start = 1 : i64, step = 1 : i64} : (tensor<?x2x3xf32, "T">) -> tensor<?x2x2xf32, "T">
%13 = "graph.cast"(%12) : (tensor<?x2x2xf32, "T">) -> tensor<?x2x2xf32, "T">
// -->
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x12xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x12xf32>, tensor<?xi32, "T">) -> tensor<?x12xf32, "T">
%5 = "graph.reshape"(%4) : (tensor<?x12xf32, "T">) -> tensor<?x2x6xf32, "T">
%6 = "graph.slice"(%5) {axis = 2 : i64, size = 2 : i64, start = 2 : i64, step = 2 : i64} : (tensor<?x2x6xf32, "T">) -> tensor<?x2x2xf32, "T">
