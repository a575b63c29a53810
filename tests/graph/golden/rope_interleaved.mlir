// RecogniseRotary
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x8xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x8xf32>, tensor<?xi32, "T">) -> tensor<?x8xf32, "T">
%5 = "graph.reshape"(%4) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
%6 = "graph.slice"(%5) {axis = 2 : i64, size = 2 : i64, start = 0 : i64, step = 2 : i64} : (tensor<?x2x4xf32, "T">) -> tensor<?x2x2xf32, "T">
%7 = "graph.slice"(%5) {axis = 2 : i64, size = 2 : i64, start = 1 : i64, step = 2 : i64} : (tensor<?x2x4xf32, "T">) -> tensor<?x2x2xf32, "T">
%8 = "graph.neg"(%7) : (tensor<?x2x2xf32, "T">) -> tensor<?x2x2xf32, "T">
%9 = "graph.reshape"(%8) : (tensor<?x2x2xf32, "T">) -> tensor<?x2x2x1xf32, "T">
%10 = "graph.reshape"(%6) : (tensor<?x2x2xf32, "T">) -> tensor<?x2x2x1xf32, "T">
%11 = "graph.concat"(%9, %10) {axis = 3 : i64} : (tensor<?x2x2x1xf32, "T">, tensor<?x2x2x1xf32, "T">) -> tensor<?x2x2x2xf32, "T">
%12 = "graph.reshape"(%11) : (tensor<?x2x2x2xf32, "T">) -> tensor<?x2x4xf32, "T">
%13 = "graph.cast"(%1) : (tensor<?xi32, "T">) -> tensor<?xf32, "T">
%14 = "graph.reshape"(%13) : (tensor<?xf32, "T">) -> tensor<?x1xf32, "T">
%15 = "graph.constant"() {value = dense<[1.000000e+00, 5.000000e-01]> : tensor<2xf32>} : () -> tensor<2xf32>
%16 = "graph.mul"(%14, %15) : (tensor<?x1xf32, "T">, tensor<2xf32>) -> tensor<?x2xf32, "T">
%17 = "graph.reshape"(%16) : (tensor<?x2xf32, "T">) -> tensor<?x2x1xf32, "T">
%18 = "graph.broadcast"(%17) : (tensor<?x2x1xf32, "T">) -> tensor<?x2x2xf32, "T">
%19 = "graph.reshape"(%18) : (tensor<?x2x2xf32, "T">) -> tensor<?x4xf32, "T">
%20 = "graph.cos"(%19) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%21 = "graph.sin"(%19) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%22 = "graph.reshape"(%20) : (tensor<?x4xf32, "T">) -> tensor<?x1x4xf32, "T">
%23 = "graph.reshape"(%21) : (tensor<?x4xf32, "T">) -> tensor<?x1x4xf32, "T">
%24 = "graph.mul"(%5, %22) : (tensor<?x2x4xf32, "T">, tensor<?x1x4xf32, "T">) -> tensor<?x2x4xf32, "T">
%25 = "graph.mul"(%12, %23) : (tensor<?x2x4xf32, "T">, tensor<?x1x4xf32, "T">) -> tensor<?x2x4xf32, "T">
%26 = "graph.add"(%24, %25) : (tensor<?x2x4xf32, "T">, tensor<?x2x4xf32, "T">) -> tensor<?x2x4xf32, "T">
// -->
%3 = "graph.constant"() {value = dense<[1.000000e+00, 5.000000e-01]> : tensor<2xf32>} : () -> tensor<2xf32>
%4, %5 = "graph.rope_table"(%1, %3) {scale = 1.000000e+00 : f64} : (tensor<?xi32, "T">, tensor<2xf32>) -> (tensor<?x2xf32, "T">, tensor<?x2xf32, "T">)
%6 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x8xf32>
%7 = "graph.embedding"(%6, %0) {offset = 0 : i64} : (tensor<11x8xf32>, tensor<?xi32, "T">) -> tensor<?x8xf32, "T">
%8 = "graph.reshape"(%7) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
%9 = "graph.rope"(%8, %4, %5) {interleaved} : (tensor<?x2x4xf32, "T">, tensor<?x2xf32, "T">, tensor<?x2xf32, "T">) -> tensor<?x2x4xf32, "T">
