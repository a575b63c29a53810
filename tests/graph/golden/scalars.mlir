// FoldScalars
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.constant"() {value = dense<3.000000e+00> : tensor<f32>} : () -> tensor<f32>
%6 = "graph.constant"() {value = dense<4.000000e+00> : tensor<f32>} : () -> tensor<f32>
%7 = "graph.div"(%4, %6) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%8 = "graph.mul"(%5, %7) : (tensor<f32>, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%9 = "graph.constant"() {value = dense<1.000000e+00> : tensor<f32>} : () -> tensor<f32>
%10 = "graph.mul"(%8, %9) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%11 = "graph.constant"() {value = dense<0.000000e+00> : tensor<f32>} : () -> tensor<f32>
%12 = "graph.add"(%10, %11) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%13 = "graph.constant"() {value = dense<2.000000e+00> : tensor<f32>} : () -> tensor<f32>
%14 = "graph.pow"(%12, %13) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%15 = "graph.constant"() {value = dense<1.000000e+00> : tensor<f32>} : () -> tensor<f32>
%16 = "graph.add"(%14, %15) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%17 = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<4xf32>
%18 = "graph.sqrt"(%16) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%19 = "graph.div"(%12, %18) : (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%20 = "graph.mul"(%17, %19) : (tensor<4xf32>, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
// -->
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.constant"() {value = dense<7.500000e-01> : tensor<f32>} : () -> tensor<f32>
%6 = "graph.mul"(%4, %5) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%7 = "graph.square"(%6) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%8 = "graph.constant"() {value = dense<1.000000e+00> : tensor<f32>} : () -> tensor<f32>
%9 = "graph.add"(%7, %8) : (tensor<?x4xf32, "T">, tensor<f32>) -> tensor<?x4xf32, "T">
%10 = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<4xf32>
%11 = "graph.rsqrt"(%9) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%12 = "graph.mul"(%6, %11) : (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%13 = "graph.mul"(%12, %10) : (tensor<?x4xf32, "T">, tensor<4xf32>) -> tensor<?x4xf32, "T">
