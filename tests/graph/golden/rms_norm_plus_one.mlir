// RecogniseNorms
%3 = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<4xf32>
%4 = "graph.constant"() {value = dense<1.000000e+00> : tensor<f32>} : () -> tensor<f32>
%5 = "graph.add"(%3, %4) : (tensor<4xf32>, tensor<f32>) -> tensor<4xf32>
%6 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%7 = "graph.embedding"(%6, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%8 = "graph.square"(%7) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%9 = "graph.reduce_sum"(%8) : (tensor<?x4xf32, "T">) -> tensor<?x1xf32, "T">
%10 = "graph.constant"() {value = dense<2.500000e-01> : tensor<f32>} : () -> tensor<f32>
%11 = "graph.mul"(%9, %10) : (tensor<?x1xf32, "T">, tensor<f32>) -> tensor<?x1xf32, "T">
%12 = "graph.reshape"(%11) : (tensor<?x1xf32, "T">) -> tensor<?xf32, "T">
%13 = "graph.constant"() {value = dense<1.000000e-06> : tensor<f32>} : () -> tensor<f32>
%14 = "graph.add"(%12, %13) : (tensor<?xf32, "T">, tensor<f32>) -> tensor<?xf32, "T">
%15 = "graph.rsqrt"(%14) : (tensor<?xf32, "T">) -> tensor<?xf32, "T">
%16 = "graph.reshape"(%15) : (tensor<?xf32, "T">) -> tensor<?x1xf32, "T">
%17 = "graph.mul"(%16, %7) : (tensor<?x1xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%18 = "graph.mul"(%17, %5) : (tensor<?x4xf32, "T">, tensor<4xf32>) -> tensor<?x4xf32, "T">
// -->
%3 = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<4xf32>
%4 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%5 = "graph.embedding"(%4, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%6 = "graph.rms_norm"(%5, %3) {eps = 1.000000e-06 : f64, weight_offset = 1.000000e+00 : f64} : (tensor<?x4xf32, "T">, tensor<4xf32>) -> tensor<?x4xf32, "T">
