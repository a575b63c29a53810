// PlanTiles
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%b = "schedule.weight"() {layout = "rows", name = "b", sources = ["b"]} : () -> tensor<4xf32>
%2 = "schedule.weight"() {layout = "panels_k1", name = "v", sources = ["v"]} : () -> tensor<4x6xf32>
%3 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x6xf32>
%4 = "schedule.group"(%ids, %3) ({
^bb0(%5: tensor<?xi32, "T">, %6: tensor<9x6xf32>):
  %7 = "schedule.lookup"(%5, %6) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x6xf32>) -> tensor<?x6xf32, "T">
  "schedule.yield"(%7) : (tensor<?x6xf32, "T">) -> ()
}) {kind = "rows"} : (tensor<?xi32, "T">, tensor<9x6xf32>) -> tensor<?x6xf32, "T">
%8 = "schedule.group"(%4, %2, %b) ({
^bb0(%9: tensor<?x6xf32, "T">, %10: tensor<4x6xf32>, %11: tensor<4xf32>):
  %12 = "schedule.matmul"(%9, %10) {module = "block.0.out"} : (tensor<?x6xf32, "T">, tensor<4x6xf32>) -> tensor<?x4xf32, "T">
  %13 = "graph.add"(%12, %11) {module = "block.0.out"} : (tensor<?x4xf32, "T">, tensor<4xf32>) -> tensor<?x4xf32, "T">
  %14 = "graph.tanh"(%13) {module = "block.1"} : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
  "schedule.yield"(%14) : (tensor<?x4xf32, "T">) -> ()
}) {kind = "linear"} : (tensor<?x6xf32, "T">, tensor<4x6xf32>, tensor<4xf32>) -> tensor<?x4xf32, "T">
%15 = "schedule.group"(%8, %rows) ({
^bb0(%16: tensor<?x4xf32, "T">, %17: tensor<?xi32, "L">):
  %18 = "graph.select_rows"(%16, %17) : (tensor<?x4xf32, "T">, tensor<?xi32, "L">) -> tensor<?x4xf32, "L">
  "schedule.yield"(%18) : (tensor<?x4xf32, "L">) -> ()
}) {kind = "rows"} : (tensor<?x4xf32, "T">, tensor<?xi32, "L">) -> tensor<?x4xf32, "L">
"func.return"(%15) : (tensor<?x4xf32, "L">) -> ()
// -->
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%b = "schedule.weight"() {layout = "rows", name = "b", sources = ["b"]} : () -> tensor<4xf32>
%2 = "schedule.weight"() {layout = "panels_k1", name = "v", sources = ["v"]} : () -> tensor<4x6xf32>
%3 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x6xf32>
%4 = "schedule.group"(%ids, %3) ({
^bb0(%5: tensor<?xi32, "T">, %6: tensor<9x6xf32>):
  %7 = "schedule.lookup"(%5, %6) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x6xf32>) -> tensor<?x6xf32, "T">
  "schedule.yield"(%7) : (tensor<?x6xf32, "T">) -> ()
}) {kind = "rows"} : (tensor<?xi32, "T">, tensor<9x6xf32>) -> tensor<?x6xf32, "T">
%8 = "schedule.group"(%4, %2, %b) ({
^bb0(%9: tensor<?x6xf32, "T">, %10: tensor<4x6xf32>, %11: tensor<4xf32>):
  %12 = "schedule.matmul"(%9, %10) {module = "block.0.out"} : (tensor<?x6xf32, "T">, tensor<4x6xf32>) -> tensor<?x4xf32, "T">
  %13 = "graph.add"(%12, %11) {module = "block.0.out"} : (tensor<?x4xf32, "T">, tensor<4xf32>) -> tensor<?x4xf32, "T">
  %14 = "graph.tanh"(%13) {module = "block.1"} : (tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
  "schedule.yield"(%14) : (tensor<?x4xf32, "T">) -> ()
}) {kind = "linear", tiles = {"x86-64-v4" = [[0 : i64, 3 : i64, 1 : i64, 0 : i64]]}, tuned = ["x86-64-v4"]} : (tensor<?x6xf32, "T">, tensor<4x6xf32>, tensor<4xf32>) -> tensor<?x4xf32, "T">
%15 = "schedule.group"(%8, %rows) ({
^bb0(%16: tensor<?x4xf32, "T">, %17: tensor<?xi32, "L">):
  %18 = "graph.select_rows"(%16, %17) : (tensor<?x4xf32, "T">, tensor<?xi32, "L">) -> tensor<?x4xf32, "L">
  "schedule.yield"(%18) : (tensor<?x4xf32, "L">) -> ()
}) {kind = "rows"} : (tensor<?x4xf32, "T">, tensor<?xi32, "L">) -> tensor<?x4xf32, "L">
"func.return"(%15) : (tensor<?x4xf32, "L">) -> ()
