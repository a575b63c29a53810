// ChooseNumerics
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">):
%w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x6xf32>
%x = "graph.embedding"(%w, %ids) {offset = 2 : i64} : (tensor<9x6xf32>, tensor<?xi32, "T">) -> tensor<?x6xf32, "T">
%s = "graph.select_rows"(%x, %rows) : (tensor<?x6xf32, "T">, tensor<?xi32, "L">) -> tensor<?x6xf32, "L">
%y = "graph.linear"(%s, %w) : (tensor<?x6xf32, "L">, tensor<9x6xf32>) -> tensor<?x9xf32, "L">
"func.return"(%y) : (tensor<?x9xf32, "L">) -> ()
// -->
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "rows", name = "w.scales", scales_of = "w", sources = ["w"]} : () -> tensor<9xf32>
%3 = "schedule.weight"() {layout = "panels_k4", name = "w", sources = ["w"]} : () -> tensor<9x6xui8>
%x = "schedule.lookup"(%ids, %3, %2) {offset = 2 : i64} : (tensor<?xi32, "T">, tensor<9x6xui8>, tensor<9xf32>) -> tensor<?x6xf32, "T">
%s = "graph.select_rows"(%x, %rows) : (tensor<?x6xf32, "T">, tensor<?xi32, "L">) -> tensor<?x6xf32, "L">
%4, %5, %6 = "schedule.quantize"(%s) {group = 64 : i64} : (tensor<?x6xf32, "L">) -> (tensor<?x6xi8, "L">, tensor<?x1xf32, "L">, tensor<?x1xi32, "L">)
%y = "schedule.matmul"(%4, %3, %5, %6, %2) {group = 64 : i64} : (tensor<?x6xi8, "L">, tensor<9x6xui8>, tensor<?x1xf32, "L">, tensor<?x1xi32, "L">, tensor<9xf32>) -> tensor<?x9xf32, "L">
"func.return"(%y) : (tensor<?x9xf32, "L">) -> ()
