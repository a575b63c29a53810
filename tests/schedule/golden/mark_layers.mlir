// MarkLayers
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">):
%w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x6xf32>
%x = "graph.embedding"(%w, %ids) {offset = 0 : i64} : (tensor<9x6xf32>, tensor<?xi32, "T">) -> tensor<?x6xf32, "T">
%v = "graph.weight"() {name = "v", sources = ["v"]} : () -> tensor<4x6xf32>
%b = "graph.weight"() {name = "b", sources = ["b"]} : () -> tensor<4xf32>
%y = "graph.linear"(%x, %v, %b) {module = "block.0.out"} : (tensor<?x6xf32, "T">, tensor<4x6xf32>, tensor<4xf32>) -> tensor<?x4xf32, "T">
%z = "graph.tanh"(%y) {module = "block.1"} : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%s = "graph.select_rows"(%z, %rows) : (tensor<?x4xf32, "T">, tensor<?xi32, "L">) -> tensor<?x4xf32, "L">
"func.return"(%s) : (tensor<?x4xf32, "L">) -> ()
// -->
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">):
%w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x6xf32>
%x = "graph.embedding"(%w, %ids) {offset = 0 : i64} : (tensor<9x6xf32>, tensor<?xi32, "T">) -> tensor<?x6xf32, "T">
%v = "graph.weight"() {name = "v", sources = ["v"]} : () -> tensor<4x6xf32>
%b = "graph.weight"() {name = "b", sources = ["b"]} : () -> tensor<4xf32>
%y = "graph.linear"(%x, %v, %b) {module = "block.0.out", layer_output = "block.0"} : (tensor<?x6xf32, "T">, tensor<4x6xf32>, tensor<4xf32>) -> tensor<?x4xf32, "T">
%z = "graph.tanh"(%y) {module = "block.1", layer_output = "block.1"} : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%s = "graph.select_rows"(%z, %rows) : (tensor<?x4xf32, "T">, tensor<?xi32, "L">) -> tensor<?x4xf32, "L">
"func.return"(%s) : (tensor<?x4xf32, "L">) -> ()
