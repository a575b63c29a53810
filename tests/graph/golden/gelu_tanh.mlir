// RecogniseActivations
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.constant"() {value = dense<3.000000e+00> : tensor<f32>} : () -> tensor<f32>
%6 = "graph.pow"(%4, %5) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%7 = "graph.constant"() {value = dense<4.471500e-02> : tensor<f32>} : () -> tensor<f32>
%8 = "graph.mul"(%6, %7) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%9 = "graph.add"(%4, %8) : (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%10 = "graph.constant"() {value = dense<7.978846e-01> : tensor<f32>} : () -> tensor<f32>
%11 = "graph.mul"(%9, %10) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%12 = "graph.tanh"(%11) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%13 = "graph.constant"() {value = dense<1.000000e+00> : tensor<f32>} : () -> tensor<f32>
%14 = "graph.add"(%12, %13) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%15 = "graph.constant"() {value = dense<5.000000e-01> : tensor<f32>} : () -> tensor<f32>
%16 = "graph.mul"(%4, %15) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%17 = "graph.mul"(%16, %14) : (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
// -->
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.gelu_tanh"(%4) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
