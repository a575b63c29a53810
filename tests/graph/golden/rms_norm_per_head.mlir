// RecogniseNorms
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x8xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x8xf32>, tensor<?xi32, "T">) -> tensor<?x8xf32, "T">
%5 = "graph.reshape"(%4) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
%6 = "graph.square"(%5) : (tensor<?x2x4xf32, "T">) -> tensor<?x2x4xf32, "T">
%7 = "graph.reduce_mean"(%6) : (tensor<?x2x4xf32, "T">) -> tensor<?x2x1xf32, "T">
%8 = "graph.constant"() {value = dense<1.000000e-06> : tensor<f32>} : () -> tensor<f32>
%9 = "graph.add"(%7, %8) : (tensor<?x2x1xf32, "T">, tensor<f32>) -> tensor<?x2x1xf32, "T">
%10 = "graph.rsqrt"(%9) : (tensor<?x2x1xf32, "T">) -> tensor<?x2x1xf32, "T">
%11 = "graph.mul"(%5, %10) : (tensor<?x2x4xf32, "T">, tensor<?x2x1xf32, "T">) -> tensor<?x2x4xf32, "T">
%12 = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<4xf32>
%13 = "graph.mul"(%11, %12) : (tensor<?x2x4xf32, "T">, tensor<4xf32>) -> tensor<?x2x4xf32, "T">
// -->
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x8xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x8xf32>, tensor<?xi32, "T">) -> tensor<?x8xf32, "T">
%5 = "graph.reshape"(%4) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
%6 = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<4xf32>
%7 = "graph.rms_norm"(%5, %6) {eps = 1.000000e-06 : f64, weight_offset = 0.000000e+00 : f64} : (tensor<?x2x4xf32, "T">, tensor<4xf32>) -> tensor<?x2x4xf32, "T">
