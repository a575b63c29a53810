// FlattenConcats
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">):
%w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x8xf32>
%x = "graph.embedding"(%w, %ids) {offset = 0 : i64} : (tensor<9x8xf32>, tensor<?xi32, "T">) -> tensor<?x8xf32, "T">
%q = "graph.reshape"(%x) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
%c = "graph.concat"(%q, %q) {axis = 1 : i64} : (tensor<?x2x4xf32, "T">, tensor<?x2x4xf32, "T">) -> tensor<?x4x4xf32, "T">
%s = "graph.select_rows"(%c, %rows) : (tensor<?x4x4xf32, "T">, tensor<?xi32, "L">) -> tensor<?x4x4xf32, "L">
"func.return"(%s) : (tensor<?x4x4xf32, "L">) -> ()
// -->
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">):
%w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x8xf32>
%x = "graph.embedding"(%w, %ids) {offset = 0 : i64} : (tensor<9x8xf32>, tensor<?xi32, "T">) -> tensor<?x8xf32, "T">
%q = "graph.reshape"(%x) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
%0 = "graph.reshape"(%q) : (tensor<?x2x4xf32, "T">) -> tensor<?x8xf32, "T">
%1 = "graph.reshape"(%q) : (tensor<?x2x4xf32, "T">) -> tensor<?x8xf32, "T">
%c = "graph.concat"(%0, %1) {axis = 1 : i64} : (tensor<?x8xf32, "T">, tensor<?x8xf32, "T">) -> tensor<?x16xf32, "T">
%c_1 = "graph.reshape"(%c) : (tensor<?x16xf32, "T">) -> tensor<?x4x4xf32, "T">
%s = "graph.select_rows"(%c_1, %rows) : (tensor<?x4x4xf32, "T">, tensor<?xi32, "L">) -> tensor<?x4x4xf32, "L">
"func.return"(%s) : (tensor<?x4x4xf32, "L">) -> ()
