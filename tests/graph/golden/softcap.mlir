// RecogniseActivations
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.constant"() {value = dense<3.33333351e-02> : tensor<f32>} : () -> tensor<f32>
%6 = "graph.mul"(%4, %5) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%7 = "graph.tanh"(%6) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%8 = "graph.constant"() {value = dense<3.000000e+01> : tensor<f32>} : () -> tensor<f32>
%9 = "graph.mul"(%7, %8) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
// -->
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.softcap"(%4) {cap = 3.000000e+01 : f64} : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
