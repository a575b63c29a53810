// JoinRounding
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "panels_k2", name = "v", sources = ["v"]} : () -> tensor<9x128xbf16>
%3 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x128xbf16>
%4 = "schedule.group"(%ids, %3) ({
^bb0(%5: tensor<?xi32, "T">, %6: tensor<9x128xbf16>):
  %7 = "schedule.lookup"(%5, %6) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x128xbf16>) -> tensor<?x128xf32, "T">
  "schedule.yield"(%7) : (tensor<?x128xf32, "T">) -> ()
}) {kind = "rows"} : (tensor<?xi32, "T">, tensor<9x128xbf16>) -> tensor<?x128xf32, "T">
"schedule.group"(%4, %positions, %0, %1) ({
^bb0(%8: tensor<?x128xf32, "T">, %9: tensor<?xi32, "T">, %10: tensor<?xi32, "T">, %11: tensor<?x?xi32>):
  %12 = "graph.reshape"(%8) : (tensor<?x128xf32, "T">) -> tensor<?x2x64xf32, "T">
  "schedule.cache_write"(%12, %9, %10, %11) {cache = 0 : i64, element = "bf16", part = "key"} : (tensor<?x2x64xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
  "schedule.yield"() : () -> ()
}) {kind = "rows"} : (tensor<?x128xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
"schedule.group"(%4, %positions, %0, %1) ({
^bb0(%13: tensor<?x128xf32, "T">, %14: tensor<?xi32, "T">, %15: tensor<?xi32, "T">, %16: tensor<?x?xi32>):
  %17 = "graph.reshape"(%13) : (tensor<?x128xf32, "T">) -> tensor<?x2x64xf32, "T">
  "schedule.cache_write"(%17, %14, %15, %16) {cache = 0 : i64, element = "bf16", part = "value"} : (tensor<?x2x64xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
  "schedule.yield"() : () -> ()
}) {kind = "rows"} : (tensor<?x128xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
%18 = "schedule.group"(%4, %positions, %0, %1) ({
^bb0(%19: tensor<?x128xf32, "T">, %20: tensor<?xi32, "T">, %21: tensor<?xi32, "T">, %22: tensor<?x?xi32>):
  %23 = "graph.reshape"(%19) : (tensor<?x128xf32, "T">) -> tensor<?x2x64xf32, "T">
  %24 = "schedule.attend"(%23, %20, %21, %22) {cache = 0 : i64, element = "bf16", key_heads = 2 : i64, scale = 5.000000e-01 : f64, softcap = 0.000000e+00 : f64, value_dim = 64 : i64, window = 0 : i64} : (tensor<?x2x64xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x2x64xf32, "T">
  "schedule.yield"(%24) : (tensor<?x2x64xf32, "T">) -> ()
}) {kind = "attention"} : (tensor<?x128xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x2x64xf32, "T">
%25 = "schedule.group"(%18) ({
^bb0(%26: tensor<?x2x64xf32, "T">):
  %27 = "graph.reshape"(%26) : (tensor<?x2x64xf32, "T">) -> tensor<?x128xf32, "T">
  %28 = "schedule.round"(%27) : (tensor<?x128xf32, "T">) -> tensor<?x128xbf16, "T">
  "schedule.yield"(%28) : (tensor<?x128xbf16, "T">) -> ()
}) {kind = "rows"} : (tensor<?x2x64xf32, "T">) -> tensor<?x128xbf16, "T">
%29 = "schedule.group"(%25, %2) ({
^bb0(%30: tensor<?x128xbf16, "T">, %31: tensor<9x128xbf16>):
  %32 = "schedule.matmul"(%30, %31) : (tensor<?x128xbf16, "T">, tensor<9x128xbf16>) -> tensor<?x9xf32, "T">
  "schedule.yield"(%32) : (tensor<?x9xf32, "T">) -> ()
}) {kind = "linear"} : (tensor<?x128xbf16, "T">, tensor<9x128xbf16>) -> tensor<?x9xf32, "T">
%33 = "schedule.group"(%29, %rows) ({
^bb0(%34: tensor<?x9xf32, "T">, %35: tensor<?xi32, "L">):
  %36 = "graph.select_rows"(%34, %35) : (tensor<?x9xf32, "T">, tensor<?xi32, "L">) -> tensor<?x9xf32, "L">
  "schedule.yield"(%36) : (tensor<?x9xf32, "L">) -> ()
}) {kind = "rows"} : (tensor<?x9xf32, "T">, tensor<?xi32, "L">) -> tensor<?x9xf32, "L">
"func.return"(%33) : (tensor<?x9xf32, "L">) -> ()
// -->
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "panels_k2", name = "v", sources = ["v"]} : () -> tensor<9x128xbf16>
%3 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x128xbf16>
%4 = "schedule.group"(%ids, %3) ({
^bb0(%5: tensor<?xi32, "T">, %6: tensor<9x128xbf16>):
  %7 = "schedule.lookup"(%5, %6) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x128xbf16>) -> tensor<?x128xf32, "T">
  "schedule.yield"(%7) : (tensor<?x128xf32, "T">) -> ()
}) {kind = "rows"} : (tensor<?xi32, "T">, tensor<9x128xbf16>) -> tensor<?x128xf32, "T">
"schedule.group"(%4, %positions, %0, %1) ({
^bb0(%8: tensor<?x128xf32, "T">, %9: tensor<?xi32, "T">, %10: tensor<?xi32, "T">, %11: tensor<?x?xi32>):
  %12 = "graph.reshape"(%8) : (tensor<?x128xf32, "T">) -> tensor<?x2x64xf32, "T">
  "schedule.cache_write"(%12, %9, %10, %11) {cache = 0 : i64, element = "bf16", part = "key"} : (tensor<?x2x64xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
  "schedule.yield"() : () -> ()
}) {kind = "rows"} : (tensor<?x128xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
"schedule.group"(%4, %positions, %0, %1) ({
^bb0(%13: tensor<?x128xf32, "T">, %14: tensor<?xi32, "T">, %15: tensor<?xi32, "T">, %16: tensor<?x?xi32>):
  %17 = "graph.reshape"(%13) : (tensor<?x128xf32, "T">) -> tensor<?x2x64xf32, "T">
  "schedule.cache_write"(%17, %14, %15, %16) {cache = 0 : i64, element = "bf16", part = "value"} : (tensor<?x2x64xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
  "schedule.yield"() : () -> ()
}) {kind = "rows"} : (tensor<?x128xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
%18 = "schedule.group"(%4, %positions, %0, %1) ({
^bb0(%19: tensor<?x128xf32, "T">, %20: tensor<?xi32, "T">, %21: tensor<?xi32, "T">, %22: tensor<?x?xi32>):
  %23 = "graph.reshape"(%19) : (tensor<?x128xf32, "T">) -> tensor<?x2x64xf32, "T">
  %24 = "schedule.attend"(%23, %20, %21, %22) {cache = 0 : i64, element = "bf16", key_heads = 2 : i64, scale = 5.000000e-01 : f64, softcap = 0.000000e+00 : f64, value_dim = 64 : i64, window = 0 : i64} : (tensor<?x2x64xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x2x64xf32, "T">
  %25 = "graph.reshape"(%24) : (tensor<?x2x64xf32, "T">) -> tensor<?x128xf32, "T">
  %26 = "schedule.round"(%25) : (tensor<?x128xf32, "T">) -> tensor<?x128xbf16, "T">
  "schedule.yield"(%26) : (tensor<?x128xbf16, "T">) -> ()
}) {kind = "attention"} : (tensor<?x128xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x128xbf16, "T">
%27 = "schedule.group"(%18, %2) ({
^bb0(%28: tensor<?x128xbf16, "T">, %29: tensor<9x128xbf16>):
  %30 = "schedule.matmul"(%28, %29) : (tensor<?x128xbf16, "T">, tensor<9x128xbf16>) -> tensor<?x9xf32, "T">
  "schedule.yield"(%30) : (tensor<?x9xf32, "T">) -> ()
}) {kind = "linear"} : (tensor<?x128xbf16, "T">, tensor<9x128xbf16>) -> tensor<?x9xf32, "T">
%31 = "schedule.group"(%27, %rows) ({
^bb0(%32: tensor<?x9xf32, "T">, %33: tensor<?xi32, "L">):
  %34 = "graph.select_rows"(%32, %33) : (tensor<?x9xf32, "T">, tensor<?xi32, "L">) -> tensor<?x9xf32, "L">
  "schedule.yield"(%34) : (tensor<?x9xf32, "L">) -> ()
}) {kind = "rows"} : (tensor<?x9xf32, "T">, tensor<?xi32, "L">) -> tensor<?x9xf32, "L">
"func.return"(%31) : (tensor<?x9xf32, "L">) -> ()
