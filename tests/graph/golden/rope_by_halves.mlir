// RecogniseRotary
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x8xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x8xf32>, tensor<?xi32, "T">) -> tensor<?x8xf32, "T">
%5 = "graph.reshape"(%4) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
%6 = "graph.cast"(%1) : (tensor<?xi32, "T">) -> tensor<?xf32, "T">
%7 = "graph.reshape"(%6) : (tensor<?xf32, "T">) -> tensor<?x1xf32, "T">
%8 = "graph.constant"() {value = dense<[1.000000e+00, 5.000000e-01]> : tensor<2xf32>} : () -> tensor<2xf32>
%9 = "graph.mul"(%7, %8) : (tensor<?x1xf32, "T">, tensor<2xf32>) -> tensor<?x2xf32, "T">
%10 = "graph.concat"(%9, %9) {axis = 1 : i64} : (tensor<?x2xf32, "T">, tensor<?x2xf32, "T">) -> tensor<?x4xf32, "T">
%11 = "graph.cos"(%10) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%12 = "graph.sin"(%10) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%13 = "graph.reshape"(%11) : (tensor<?x4xf32, "T">) -> tensor<?x1x4xf32, "T">
%14 = "graph.reshape"(%12) : (tensor<?x4xf32, "T">) -> tensor<?x1x4xf32, "T">
%15 = "graph.slice"(%13) {axis = 2 : i64, size = 2 : i64, start = 0 : i64, step = 1 : i64} : (tensor<?x1x4xf32, "T">) -> tensor<?x1x2xf32, "T">
%16 = "graph.slice"(%14) {axis = 2 : i64, size = 2 : i64, start = 0 : i64, step = 1 : i64} : (tensor<?x1x4xf32, "T">) -> tensor<?x1x2xf32, "T">
%17 = "graph.slice"(%5) {axis = 2 : i64, size = 2 : i64, start = 0 : i64, step = 1 : i64} : (tensor<?x2x4xf32, "T">) -> tensor<?x2x2xf32, "T">
%18 = "graph.slice"(%5) {axis = 2 : i64, size = 2 : i64, start = 2 : i64, step = 1 : i64} : (tensor<?x2x4xf32, "T">) -> tensor<?x2x2xf32, "T">
%19 = "graph.mul"(%17, %15) : (tensor<?x2x2xf32, "T">, tensor<?x1x2xf32, "T">) -> tensor<?x2x2xf32, "T">
%20 = "graph.mul"(%18, %16) : (tensor<?x2x2xf32, "T">, tensor<?x1x2xf32, "T">) -> tensor<?x2x2xf32, "T">
%21 = "graph.sub"(%19, %20) : (tensor<?x2x2xf32, "T">, tensor<?x2x2xf32, "T">) -> tensor<?x2x2xf32, "T">
%22 = "graph.mul"(%18, %15) : (tensor<?x2x2xf32, "T">, tensor<?x1x2xf32, "T">) -> tensor<?x2x2xf32, "T">
%23 = "graph.mul"(%17, %16) : (tensor<?x2x2xf32, "T">, tensor<?x1x2xf32, "T">) -> tensor<?x2x2xf32, "T">
%24 = "graph.add"(%22, %23) : (tensor<?x2x2xf32, "T">, tensor<?x2x2xf32, "T">) -> tensor<?x2x2xf32, "T">
%25 = "graph.concat"(%21, %24) {axis = 2 : i64} : (tensor<?x2x2xf32, "T">, tensor<?x2x2xf32, "T">) -> tensor<?x2x4xf32, "T">
// -->
%3 = "graph.constant"() {value = dense<[1.000000e+00, 5.000000e-01]> : tensor<2xf32>} : () -> tensor<2xf32>
%4, %5 = "graph.rope_table"(%1, %3) {scale = 1.000000e+00 : f64} : (tensor<?xi32, "T">, tensor<2xf32>) -> (tensor<?x2xf32, "T">, tensor<?x2xf32, "T">)
%6 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x8xf32>
%7 = "graph.embedding"(%6, %0) {offset = 0 : i64} : (tensor<11x8xf32>, tensor<?xi32, "T">) -> tensor<?x8xf32, "T">
%8 = "graph.reshape"(%7) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
%9 = "graph.rope"(%8, %4, %5) : (tensor<?x2x4xf32, "T">, tensor<?x2xf32, "T">, tensor<?x2xf32, "T">) -> tensor<?x2x4xf32, "T">
