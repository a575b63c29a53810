// RecogniseActivations
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.constant"() {value = dense<4.471500e-02> : tensor<f32>} : () -> tensor<f32>
%6 = "graph.mul"(%4, %5) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%7 = "graph.mul"(%6, %4) : (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%8 = "graph.constant"() {value = dense<1.000000e+00> : tensor<f32>} : () -> tensor<f32>
%9 = "graph.add"(%7, %8) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%10 = "graph.mul"(%4, %9) : (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%11 = "graph.constant"() {value = dense<7.978846e-01> : tensor<f32>} : () -> tensor<f32>
%12 = "graph.mul"(%10, %11) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%13 = "graph.tanh"(%12) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%14 = "graph.constant"() {value = dense<1.000000e+00> : tensor<f32>} : () -> tensor<f32>
%15 = "graph.add"(%13, %14) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%16 = "graph.mul"(%4, %15) : (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%17 = "graph.constant"() {value = dense<5.000000e-01> : tensor<f32>} : () -> tensor<f32>
%18 = "graph.mul"(%16, %17) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
// -->
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.gelu_tanh"(%4) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
