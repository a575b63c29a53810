// PlanPhases
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x8xf32>
%3 = "schedule.group"(%ids, %2) ({
^bb0(%4: tensor<?xi32, "T">, %5: tensor<9x8xf32>):
  %6 = "schedule.lookup"(%4, %5) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x8xf32>) -> tensor<?x8xf32, "T">
  "schedule.yield"(%6) : (tensor<?x8xf32, "T">) -> ()
}) {kind = "rows"} : (tensor<?xi32, "T">, tensor<9x8xf32>) -> tensor<?x8xf32, "T">
"schedule.group"(%3, %positions, %0, %1) ({
^bb0(%7: tensor<?x8xf32, "T">, %8: tensor<?xi32, "T">, %9: tensor<?xi32, "T">, %10: tensor<?x?xi32>):
  %11 = "graph.reshape"(%7) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
  "schedule.cache_write"(%11, %8, %9, %10) {cache = 0 : i64, element = "f32", part = "key"} : (tensor<?x2x4xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
  "schedule.yield"() : () -> ()
}) {kind = "rows"} : (tensor<?x8xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
"schedule.group"(%3, %positions, %0, %1) ({
^bb0(%12: tensor<?x8xf32, "T">, %13: tensor<?xi32, "T">, %14: tensor<?xi32, "T">, %15: tensor<?x?xi32>):
  %16 = "graph.reshape"(%12) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
  "schedule.cache_write"(%16, %13, %14, %15) {cache = 0 : i64, element = "f32", part = "value"} : (tensor<?x2x4xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
  "schedule.yield"() : () -> ()
}) {kind = "rows"} : (tensor<?x8xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
%17 = "schedule.group"(%3, %positions, %0, %1) ({
^bb0(%18: tensor<?x8xf32, "T">, %19: tensor<?xi32, "T">, %20: tensor<?xi32, "T">, %21: tensor<?x?xi32>):
  %22 = "graph.reshape"(%18) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
  %23 = "schedule.attend"(%22, %19, %20, %21) {cache = 0 : i64, element = "f32", key_heads = 2 : i64, scale = 5.000000e-01 : f64, softcap = 0.000000e+00 : f64, value_dim = 4 : i64, window = 0 : i64} : (tensor<?x2x4xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x2x4xf32, "T">
  "schedule.yield"(%23) : (tensor<?x2x4xf32, "T">) -> ()
}) {kind = "attention"} : (tensor<?x8xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x2x4xf32, "T">
%24 = "schedule.group"(%17, %3) ({
^bb0(%25: tensor<?x2x4xf32, "T">, %26: tensor<?x8xf32, "T">):
  %27 = "graph.reshape"(%25) : (tensor<?x2x4xf32, "T">) -> tensor<?x8xf32, "T">
  %28 = "graph.add"(%27, %26) : (tensor<?x8xf32, "T">, tensor<?x8xf32, "T">) -> tensor<?x8xf32, "T">
  "schedule.yield"(%28) : (tensor<?x8xf32, "T">) -> ()
}) {kind = "rows"} : (tensor<?x2x4xf32, "T">, tensor<?x8xf32, "T">) -> tensor<?x8xf32, "T">
%29 = "schedule.group"(%24, %rows) ({
^bb0(%30: tensor<?x8xf32, "T">, %31: tensor<?xi32, "L">):
  %32 = "graph.select_rows"(%30, %31) : (tensor<?x8xf32, "T">, tensor<?xi32, "L">) -> tensor<?x8xf32, "L">
  "schedule.yield"(%32) : (tensor<?x8xf32, "L">) -> ()
}) {kind = "rows"} : (tensor<?x8xf32, "T">, tensor<?xi32, "L">) -> tensor<?x8xf32, "L">
"func.return"(%29) : (tensor<?x8xf32, "L">) -> ()
// -->
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x8xf32>
%3 = "schedule.group"(%ids, %2) ({
^bb0(%4: tensor<?xi32, "T">, %5: tensor<9x8xf32>):
  %6 = "schedule.lookup"(%4, %5) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x8xf32>) -> tensor<?x8xf32, "T">
  "schedule.yield"(%6) : (tensor<?x8xf32, "T">) -> ()
}) {kind = "rows", barrier = false} : (tensor<?xi32, "T">, tensor<9x8xf32>) -> tensor<?x8xf32, "T">
"schedule.group"(%3, %positions, %0, %1) ({
^bb0(%7: tensor<?x8xf32, "T">, %8: tensor<?xi32, "T">, %9: tensor<?xi32, "T">, %10: tensor<?x?xi32>):
  %11 = "graph.reshape"(%7) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
  "schedule.cache_write"(%11, %8, %9, %10) {cache = 0 : i64, element = "f32", part = "key"} : (tensor<?x2x4xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
  "schedule.yield"() : () -> ()
}) {kind = "rows", barrier = true} : (tensor<?x8xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
"schedule.group"(%3, %positions, %0, %1) ({
^bb0(%12: tensor<?x8xf32, "T">, %13: tensor<?xi32, "T">, %14: tensor<?xi32, "T">, %15: tensor<?x?xi32>):
  %16 = "graph.reshape"(%12) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
  "schedule.cache_write"(%16, %13, %14, %15) {cache = 0 : i64, element = "f32", part = "value"} : (tensor<?x2x4xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
  "schedule.yield"() : () -> ()
}) {kind = "rows", barrier = false} : (tensor<?x8xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
%17 = "schedule.group"(%3, %positions, %0, %1) ({
^bb0(%18: tensor<?x8xf32, "T">, %19: tensor<?xi32, "T">, %20: tensor<?xi32, "T">, %21: tensor<?x?xi32>):
  %22 = "graph.reshape"(%18) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
  %23 = "schedule.attend"(%22, %19, %20, %21) {cache = 0 : i64, element = "f32", key_heads = 2 : i64, scale = 5.000000e-01 : f64, softcap = 0.000000e+00 : f64, value_dim = 4 : i64, window = 0 : i64} : (tensor<?x2x4xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x2x4xf32, "T">
  "schedule.yield"(%23) : (tensor<?x2x4xf32, "T">) -> ()
}) {kind = "attention", barrier = true} : (tensor<?x8xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x2x4xf32, "T">
%24 = "schedule.group"(%17, %3) ({
^bb0(%25: tensor<?x2x4xf32, "T">, %26: tensor<?x8xf32, "T">):
  %27 = "graph.reshape"(%25) : (tensor<?x2x4xf32, "T">) -> tensor<?x8xf32, "T">
  %28 = "graph.add"(%27, %26) : (tensor<?x8xf32, "T">, tensor<?x8xf32, "T">) -> tensor<?x8xf32, "T">
  "schedule.yield"(%28) : (tensor<?x8xf32, "T">) -> ()
}) {kind = "rows", barrier = true} : (tensor<?x2x4xf32, "T">, tensor<?x8xf32, "T">) -> tensor<?x8xf32, "T">
%29 = "schedule.group"(%24, %rows) ({
^bb0(%30: tensor<?x8xf32, "T">, %31: tensor<?xi32, "L">):
  %32 = "graph.select_rows"(%30, %31) : (tensor<?x8xf32, "T">, tensor<?xi32, "L">) -> tensor<?x8xf32, "L">
  "schedule.yield"(%32) : (tensor<?x8xf32, "L">) -> ()
}) {kind = "rows", barrier = true} : (tensor<?x8xf32, "T">, tensor<?xi32, "L">) -> tensor<?x8xf32, "L">
"func.return"(%29) : (tensor<?x8xf32, "L">) -> ()
