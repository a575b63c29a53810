// ChooseNumerics
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
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%b = "schedule.weight"() {layout = "rows", name = "b", sources = ["b"]} : () -> tensor<4xf32>
%2 = "schedule.weight"() {layout = "rows", name = "v.scales", scales_of = "v", sources = ["v"]} : () -> tensor<4xf32>
%3 = "schedule.weight"() {layout = "panels_k4", name = "v", sources = ["v"]} : () -> tensor<4x6xui8>
%4 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x6xbf16>
%x = "schedule.lookup"(%ids, %4) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x6xbf16>) -> tensor<?x6xf32, "T">
%5, %6, %7 = "schedule.quantize"(%x) {group = 64 : i64, module = "block.0.out"} : (tensor<?x6xf32, "T">) -> (tensor<?x6xi8, "T">, tensor<?x1xf32, "T">, tensor<?x1xi32, "T">)
%y = "schedule.matmul"(%5, %3, %6, %7, %2) {group = 64 : i64, module = "block.0.out"} : (tensor<?x6xi8, "T">, tensor<4x6xui8>, tensor<?x1xf32, "T">, tensor<?x1xi32, "T">, tensor<4xf32>) -> tensor<?x4xf32, "T">
%y_1 = "graph.add"(%y, %b) {module = "block.0.out"} : (tensor<?x4xf32, "T">, tensor<4xf32>) -> tensor<?x4xf32, "T">
%z = "graph.tanh"(%y_1) {module = "block.1"} : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%s = "graph.select_rows"(%z, %rows) : (tensor<?x4xf32, "T">, tensor<?xi32, "L">) -> tensor<?x4xf32, "L">
"func.return"(%s) : (tensor<?x4xf32, "L">) -> ()
