// RecogniseNorms
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.reduce_mean"(%4) : (tensor<?x4xf32, "T">) -> tensor<?x1xf32, "T">
%6 = "graph.sub"(%4, %5) : (tensor<?x4xf32, "T">, tensor<?x1xf32, "T">) -> tensor<?x4xf32, "T">
%7 = "graph.square"(%6) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%8 = "graph.reduce_mean"(%7) : (tensor<?x4xf32, "T">) -> tensor<?x1xf32, "T">
%9 = "graph.constant"() {value = dense<1.000000e-06> : tensor<f32>} : () -> tensor<f32>
%10 = "graph.add"(%8, %9) : (tensor<?x1xf32, "T">, tensor<f32>) -> tensor<?x1xf32, "T">
%11 = "graph.rsqrt"(%10) : (tensor<?x1xf32, "T">) -> tensor<?x1xf32, "T">
%12 = "graph.mul"(%6, %11) : (tensor<?x4xf32, "T">, tensor<?x1xf32, "T">) -> tensor<?x4xf32, "T">
%13 = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<4xf32>
%14 = "graph.mul"(%12, %13) : (tensor<?x4xf32, "T">, tensor<4xf32>) -> tensor<?x4xf32, "T">
%15 = "graph.weight"() {name = "b", sources = ["b"]} : () -> tensor<4xf32>
%16 = "graph.add"(%14, %15) : (tensor<?x4xf32, "T">, tensor<4xf32>) -> tensor<?x4xf32, "T">
// -->
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<4xf32>
%6 = "graph.weight"() {name = "b", sources = ["b"]} : () -> tensor<4xf32>
%7 = "graph.layer_norm"(%4, %5, %6) {eps = 1.000000e-06 : f64, weight_offset = 0.000000e+00 : f64} : (tensor<?x4xf32, "T">, tensor<4xf32>, tensor<4xf32>) -> tensor<?x4xf32, "T">
