// RecogniseRotary
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x14xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x14xf32>, tensor<?xi32, "T">) -> tensor<?x14xf32, "T">
%5 = "graph.reshape"(%4) : (tensor<?x14xf32, "T">) -> tensor<?x2x7xf32, "T">
%6 = "graph.slice"(%5) {axis = 2 : i64, size = 4 : i64, start = 0 : i64, step = 1 : i64} : (tensor<?x2x7xf32, "T">) -> tensor<?x2x4xf32, "T">
%7 = "graph.cast"(%1) : (tensor<?xi32, "T">) -> tensor<?xf32, "T">
%8 = "graph.reshape"(%7) : (tensor<?xf32, "T">) -> tensor<?x1xf32, "T">
%9 = "graph.constant"() {value = dense<[1.000000e+00, 5.000000e-01]> : tensor<2xf32>} : () -> tensor<2xf32>
%10 = "graph.mul"(%8, %9) : (tensor<?x1xf32, "T">, tensor<2xf32>) -> tensor<?x2xf32, "T">
%11 = "graph.concat"(%10, %10) {axis = 1 : i64} : (tensor<?x2xf32, "T">, tensor<?x2xf32, "T">) -> tensor<?x4xf32, "T">
%12 = "graph.cos"(%11) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%13 = "graph.sin"(%11) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%14 = "graph.reshape"(%12) : (tensor<?x4xf32, "T">) -> tensor<?x1x4xf32, "T">
%15 = "graph.reshape"(%13) : (tensor<?x4xf32, "T">) -> tensor<?x1x4xf32, "T">
%16 = "graph.slice"(%6) {axis = 2 : i64, size = 2 : i64, start = 2 : i64, step = 1 : i64} : (tensor<?x2x4xf32, "T">) -> tensor<?x2x2xf32, "T">
%17 = "graph.neg"(%16) : (tensor<?x2x2xf32, "T">) -> tensor<?x2x2xf32, "T">
%18 = "graph.slice"(%6) {axis = 2 : i64, size = 2 : i64, start = 0 : i64, step = 1 : i64} : (tensor<?x2x4xf32, "T">) -> tensor<?x2x2xf32, "T">
%19 = "graph.concat"(%17, %18) {axis = 2 : i64} : (tensor<?x2x2xf32, "T">, tensor<?x2x2xf32, "T">) -> tensor<?x2x4xf32, "T">
%20 = "graph.mul"(%6, %14) : (tensor<?x2x4xf32, "T">, tensor<?x1x4xf32, "T">) -> tensor<?x2x4xf32, "T">
%21 = "graph.mul"(%19, %15) : (tensor<?x2x4xf32, "T">, tensor<?x1x4xf32, "T">) -> tensor<?x2x4xf32, "T">
%22 = "graph.add"(%20, %21) : (tensor<?x2x4xf32, "T">, tensor<?x2x4xf32, "T">) -> tensor<?x2x4xf32, "T">
%23 = "graph.slice"(%5) {axis = 2 : i64, size = 3 : i64, start = 4 : i64, step = 1 : i64} : (tensor<?x2x7xf32, "T">) -> tensor<?x2x3xf32, "T">
%24 = "graph.concat"(%22, %23) {axis = 2 : i64} : (tensor<?x2x4xf32, "T">, tensor<?x2x3xf32, "T">) -> tensor<?x2x7xf32, "T">
// -->
%3 = "graph.constant"() {value = dense<[1.000000e+00, 5.000000e-01]> : tensor<2xf32>} : () -> tensor<2xf32>
%4, %5 = "graph.rope_table"(%1, %3) {scale = 1.000000e+00 : f64} : (tensor<?xi32, "T">, tensor<2xf32>) -> (tensor<?x2xf32, "T">, tensor<?x2xf32, "T">)
%6 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x14xf32>
%7 = "graph.embedding"(%6, %0) {offset = 0 : i64} : (tensor<11x14xf32>, tensor<?xi32, "T">) -> tensor<?x14xf32, "T">
%8 = "graph.reshape"(%7) : (tensor<?x14xf32, "T">) -> tensor<?x2x7xf32, "T">
%9 = "graph.rope"(%8, %4, %5) : (tensor<?x2x7xf32, "T">, tensor<?x2xf32, "T">, tensor<?x2xf32, "T">) -> tensor<?x2x7xf32, "T">
