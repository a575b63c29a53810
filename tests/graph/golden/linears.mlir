// MergeLinears
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.weight"() {name = "model.attn.q_proj.weight", sources = ["model.attn.q_proj.weight"]} : () -> tensor<3x4xf32>
%6 = "graph.linear"(%4, %5) {module = "model.attn.q_proj"} : (tensor<?x4xf32, "T">, tensor<3x4xf32>) -> tensor<?x3xf32, "T">
%7 = "graph.weight"() {name = "model.attn.k_proj.weight", sources = ["model.attn.k_proj.weight"]} : () -> tensor<3x4xf32>
%8 = "graph.linear"(%4, %7) {module = "model.attn.k_proj"} : (tensor<?x4xf32, "T">, tensor<3x4xf32>) -> tensor<?x3xf32, "T">
%9 = "graph.weight"() {name = "model.mlp.fc.weight", sources = ["model.mlp.fc.weight"]} : () -> tensor<3x4xf32>
%10 = "graph.linear"(%4, %9) {module = "model.mlp.fc"} : (tensor<?x4xf32, "T">, tensor<3x4xf32>) -> tensor<?x3xf32, "T">
%11 = "graph.concat"(%6, %8, %10) {axis = 1 : i64} : (tensor<?x3xf32, "T">, tensor<?x3xf32, "T">, tensor<?x3xf32, "T">) -> tensor<?x9xf32, "T">
// -->
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.weight"() {name = "model.attn.q_proj+k_proj.weight", sources = ["model.attn.q_proj.weight", "model.attn.k_proj.weight"], module = "model.attn.q_proj"} : () -> tensor<6x4xf32>
%6 = "graph.linear"(%4, %5) {module = "model.attn.q_proj"} : (tensor<?x4xf32, "T">, tensor<6x4xf32>) -> tensor<?x6xf32, "T">
%7 = "graph.slice"(%6) {axis = 1 : i64, size = 3 : i64, start = 0 : i64, step = 1 : i64, module = "model.attn.q_proj"} : (tensor<?x6xf32, "T">) -> tensor<?x3xf32, "T">
%8 = "graph.slice"(%6) {axis = 1 : i64, size = 3 : i64, start = 3 : i64, step = 1 : i64, module = "model.attn.k_proj"} : (tensor<?x6xf32, "T">) -> tensor<?x3xf32, "T">
%9 = "graph.weight"() {name = "model.mlp.fc.weight", sources = ["model.mlp.fc.weight"]} : () -> tensor<3x4xf32>
%10 = "graph.linear"(%4, %9) {module = "model.mlp.fc"} : (tensor<?x4xf32, "T">, tensor<3x4xf32>) -> tensor<?x3xf32, "T">
%11 = "graph.concat"(%7, %8, %10) {axis = 1 : i64} : (tensor<?x3xf32, "T">, tensor<?x3xf32, "T">, tensor<?x3xf32, "T">) -> tensor<?x9xf32, "T">
