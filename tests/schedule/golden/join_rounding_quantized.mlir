// JoinRounding
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "rows", name = "v.scales", scales_of = "v", sources = ["v"]} : () -> tensor<9xf32>
%3 = "schedule.weight"() {layout = "panels_k4", name = "v", sources = ["v"]} : () -> tensor<9x128xui8>
%4 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x128xbf16>
%5 = "schedule.group"(%ids, %4) ({
^bb0(%6: tensor<?xi32, "T">, %7: tensor<9x128xbf16>):
  %8 = "schedule.lookup"(%6, %7) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x128xbf16>) -> tensor<?x128xf32, "T">
  "schedule.yield"(%8) : (tensor<?x128xf32, "T">) -> ()
}) {kind = "rows"} : (tensor<?xi32, "T">, tensor<9x128xbf16>) -> tensor<?x128xf32, "T">
"schedule.group"(%5, %positions, %0, %1) ({
^bb0(%9: tensor<?x128xf32, "T">, %10: tensor<?xi32, "T">, %11: tensor<?xi32, "T">, %12: tensor<?x?xi32>):
  %13 = "graph.reshape"(%9) : (tensor<?x128xf32, "T">) -> tensor<?x2x64xf32, "T">
  "schedule.cache_write"(%13, %10, %11, %12) {cache = 0 : i64, element = "bf16", part = "key"} : (tensor<?x2x64xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
  "schedule.yield"() : () -> ()
}) {kind = "rows"} : (tensor<?x128xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
"schedule.group"(%5, %positions, %0, %1) ({
^bb0(%14: tensor<?x128xf32, "T">, %15: tensor<?xi32, "T">, %16: tensor<?xi32, "T">, %17: tensor<?x?xi32>):
  %18 = "graph.reshape"(%14) : (tensor<?x128xf32, "T">) -> tensor<?x2x64xf32, "T">
  "schedule.cache_write"(%18, %15, %16, %17) {cache = 0 : i64, element = "bf16", part = "value"} : (tensor<?x2x64xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
  "schedule.yield"() : () -> ()
}) {kind = "rows"} : (tensor<?x128xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
%19 = "schedule.group"(%5, %positions, %0, %1) ({
^bb0(%20: tensor<?x128xf32, "T">, %21: tensor<?xi32, "T">, %22: tensor<?xi32, "T">, %23: tensor<?x?xi32>):
  %24 = "graph.reshape"(%20) : (tensor<?x128xf32, "T">) -> tensor<?x2x64xf32, "T">
  %25 = "schedule.attend"(%24, %21, %22, %23) {cache = 0 : i64, element = "bf16", key_heads = 2 : i64, scale = 5.000000e-01 : f64, softcap = 0.000000e+00 : f64, value_dim = 64 : i64, window = 0 : i64} : (tensor<?x2x64xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x2x64xf32, "T">
  "schedule.yield"(%25) : (tensor<?x2x64xf32, "T">) -> ()
}) {kind = "attention"} : (tensor<?x128xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x2x64xf32, "T">
%26, %27, %28 = "schedule.group"(%19) ({
^bb0(%29: tensor<?x2x64xf32, "T">):
  %30 = "graph.reshape"(%29) : (tensor<?x2x64xf32, "T">) -> tensor<?x128xf32, "T">
  %31, %32, %33 = "schedule.quantize"(%30) {group = 64 : i64} : (tensor<?x128xf32, "T">) -> (tensor<?x128xi8, "T">, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">)
  "schedule.yield"(%31, %32, %33) : (tensor<?x128xi8, "T">, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">) -> ()
}) {kind = "rows"} : (tensor<?x2x64xf32, "T">) -> (tensor<?x128xi8, "T">, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">)
%34 = "schedule.group"(%26, %3, %27, %28, %2) ({
^bb0(%35: tensor<?x128xi8, "T">, %36: tensor<9x128xui8>, %37: tensor<?x2xf32, "T">, %38: tensor<?x2xi32, "T">, %39: tensor<9xf32>):
  %40 = "schedule.matmul"(%35, %36, %37, %38, %39) {group = 64 : i64} : (tensor<?x128xi8, "T">, tensor<9x128xui8>, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">, tensor<9xf32>) -> tensor<?x9xf32, "T">
  "schedule.yield"(%40) : (tensor<?x9xf32, "T">) -> ()
}) {kind = "linear"} : (tensor<?x128xi8, "T">, tensor<9x128xui8>, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">, tensor<9xf32>) -> tensor<?x9xf32, "T">
%41 = "schedule.group"(%34, %rows) ({
^bb0(%42: tensor<?x9xf32, "T">, %43: tensor<?xi32, "L">):
  %44 = "graph.select_rows"(%42, %43) : (tensor<?x9xf32, "T">, tensor<?xi32, "L">) -> tensor<?x9xf32, "L">
  "schedule.yield"(%44) : (tensor<?x9xf32, "L">) -> ()
}) {kind = "rows"} : (tensor<?x9xf32, "T">, tensor<?xi32, "L">) -> tensor<?x9xf32, "L">
"func.return"(%41) : (tensor<?x9xf32, "L">) -> ()
// -->
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "rows", name = "v.scales", scales_of = "v", sources = ["v"]} : () -> tensor<9xf32>
%3 = "schedule.weight"() {layout = "panels_k4", name = "v", sources = ["v"]} : () -> tensor<9x128xui8>
%4 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x128xbf16>
%5 = "schedule.group"(%ids, %4) ({
^bb0(%6: tensor<?xi32, "T">, %7: tensor<9x128xbf16>):
  %8 = "schedule.lookup"(%6, %7) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x128xbf16>) -> tensor<?x128xf32, "T">
  "schedule.yield"(%8) : (tensor<?x128xf32, "T">) -> ()
}) {kind = "rows"} : (tensor<?xi32, "T">, tensor<9x128xbf16>) -> tensor<?x128xf32, "T">
"schedule.group"(%5, %positions, %0, %1) ({
^bb0(%9: tensor<?x128xf32, "T">, %10: tensor<?xi32, "T">, %11: tensor<?xi32, "T">, %12: tensor<?x?xi32>):
  %13 = "graph.reshape"(%9) : (tensor<?x128xf32, "T">) -> tensor<?x2x64xf32, "T">
  "schedule.cache_write"(%13, %10, %11, %12) {cache = 0 : i64, element = "bf16", part = "key"} : (tensor<?x2x64xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
  "schedule.yield"() : () -> ()
}) {kind = "rows"} : (tensor<?x128xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
"schedule.group"(%5, %positions, %0, %1) ({
^bb0(%14: tensor<?x128xf32, "T">, %15: tensor<?xi32, "T">, %16: tensor<?xi32, "T">, %17: tensor<?x?xi32>):
  %18 = "graph.reshape"(%14) : (tensor<?x128xf32, "T">) -> tensor<?x2x64xf32, "T">
  "schedule.cache_write"(%18, %15, %16, %17) {cache = 0 : i64, element = "bf16", part = "value"} : (tensor<?x2x64xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
  "schedule.yield"() : () -> ()
}) {kind = "rows"} : (tensor<?x128xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
%19, %20, %21 = "schedule.group"(%5, %positions, %0, %1) ({
^bb0(%22: tensor<?x128xf32, "T">, %23: tensor<?xi32, "T">, %24: tensor<?xi32, "T">, %25: tensor<?x?xi32>):
  %26 = "graph.reshape"(%22) : (tensor<?x128xf32, "T">) -> tensor<?x2x64xf32, "T">
  %27 = "schedule.attend"(%26, %23, %24, %25) {cache = 0 : i64, element = "bf16", key_heads = 2 : i64, scale = 5.000000e-01 : f64, softcap = 0.000000e+00 : f64, value_dim = 64 : i64, window = 0 : i64} : (tensor<?x2x64xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x2x64xf32, "T">
  %28 = "graph.reshape"(%27) : (tensor<?x2x64xf32, "T">) -> tensor<?x128xf32, "T">
  %29, %30, %31 = "schedule.quantize"(%28) {group = 64 : i64} : (tensor<?x128xf32, "T">) -> (tensor<?x128xi8, "T">, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">)
  "schedule.yield"(%29, %30, %31) : (tensor<?x128xi8, "T">, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">) -> ()
}) {kind = "attention"} : (tensor<?x128xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> (tensor<?x128xi8, "T">, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">)
%32 = "schedule.group"(%19, %3, %20, %21, %2) ({
^bb0(%33: tensor<?x128xi8, "T">, %34: tensor<9x128xui8>, %35: tensor<?x2xf32, "T">, %36: tensor<?x2xi32, "T">, %37: tensor<9xf32>):
  %38 = "schedule.matmul"(%33, %34, %35, %36, %37) {group = 64 : i64} : (tensor<?x128xi8, "T">, tensor<9x128xui8>, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">, tensor<9xf32>) -> tensor<?x9xf32, "T">
  "schedule.yield"(%38) : (tensor<?x9xf32, "T">) -> ()
}) {kind = "linear"} : (tensor<?x128xi8, "T">, tensor<9x128xui8>, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">, tensor<9xf32>) -> tensor<?x9xf32, "T">
%39 = "schedule.group"(%32, %rows) ({
^bb0(%40: tensor<?x9xf32, "T">, %41: tensor<?xi32, "L">):
  %42 = "graph.select_rows"(%40, %41) : (tensor<?x9xf32, "T">, tensor<?xi32, "L">) -> tensor<?x9xf32, "L">
  "schedule.yield"(%42) : (tensor<?x9xf32, "L">) -> ()
}) {kind = "rows"} : (tensor<?x9xf32, "T">, tensor<?xi32, "L">) -> tensor<?x9xf32, "L">
"func.return"(%39) : (tensor<?x9xf32, "L">) -> ()
