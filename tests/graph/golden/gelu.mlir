// RecogniseActivations
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.constant"() {value = dense<7.07106769e-01> : tensor<f32>} : () -> tensor<f32>
%6 = "graph.mul"(%4, %5) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%7 = "graph.erf"(%6) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%8 = "graph.constant"() {value = dense<1.000000e+00> : tensor<f32>} : () -> tensor<f32>
%9 = "graph.add"(%7, %8) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%10 = "graph.constant"() {value = dense<5.000000e-01> : tensor<f32>} : () -> tensor<f32>
%11 = "graph.mul"(%4, %10) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%12 = "graph.mul"(%11, %9) : (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
// -->
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.gelu"(%4) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
