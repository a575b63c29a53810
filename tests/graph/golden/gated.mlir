// RecogniseGated
%3 = "graph.weight"() {name = "gate", sources = ["gate"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.silu"(%4) : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%6 = "graph.weight"() {name = "up", sources = ["up"]} : () -> tensor<11x4xf32>
%7 = "graph.embedding"(%6, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%8 = "graph.mul"(%7, %5) : (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
// -->
%3 = "graph.weight"() {name = "gate", sources = ["gate"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.weight"() {name = "up", sources = ["up"]} : () -> tensor<11x4xf32>
%6 = "graph.embedding"(%5, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%7 = "graph.gated"(%4, %6) {activation = "silu"} : (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
