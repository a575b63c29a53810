// RecogniseNorms
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.square"(%4) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%6 = "graph.reduce_mean"(%5) : (tensor<?x4xf32, "T">) -> tensor<?x1xf32, "T">
%7 = "graph.constant"() {value = dense<1.000000e-06> : tensor<f32>} : () -> tensor<f32>
%8 = "graph.add"(%6, %7) : (tensor<?x1xf32, "T">, tensor<f32>) -> tensor<?x1xf32, "T">
%9 = "graph.rsqrt"(%8) : (tensor<?x1xf32, "T">) -> tensor<?x1xf32, "T">
%10 = "graph.mul"(%4, %9) : (tensor<?x4xf32, "T">, tensor<?x1xf32, "T">) -> tensor<?x4xf32, "T">
%11 = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<4xf32>
%12 = "graph.mul"(%10, %11) : (tensor<?x4xf32, "T">, tensor<4xf32>) -> tensor<?x4xf32, "T">
// -->
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<4xf32>
%6 = "graph.rms_norm"(%4, %5) {eps = 1.000000e-06 : f64, weight_offset = 0.000000e+00 : f64} : (tensor<?x4xf32, "T">, tensor<4xf32>) -> tensor<?x4xf32, "T">
