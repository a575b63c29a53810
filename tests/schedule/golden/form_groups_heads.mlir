// FormGroups
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "panels_k2", name = "o", sources = ["o"]} : () -> tensor<40x64xbf16>
%3 = "schedule.weight"() {layout = "panels_k2", name = "qkv", sources = ["qkv"]} : () -> tensor<128x40xbf16>
%4 = "schedule.weight"() {layout = "panels_k2", name = "w", sources = ["w"]} : () -> tensor<23x40xbf16>
%x = "schedule.lookup"(%ids, %4) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<23x40xbf16>) -> tensor<?x40xf32, "T">
%f = "graph.constant"() {value = dense<[1.000000e+00, 7.500000e-01, 5.625000e-01, 4.218750e-01]> : tensor<4xf32>} : () -> tensor<4xf32>
%cos, %sin = "graph.rope_table"(%positions, %f) {scale = 1.000000e+00 : f64} : (tensor<?xi32, "T">, tensor<4xf32>) -> (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">)
%5 = "schedule.round"(%x) : (tensor<?x40xf32, "T">) -> tensor<?x40xbf16, "T">
%row = "schedule.matmul"(%5, %3) : (tensor<?x40xbf16, "T">, tensor<128x40xbf16>) -> tensor<?x128xf32, "T">
%q_part = "graph.slice"(%row) {axis = 1 : i64, start = 0 : i64, size = 64 : i64, step = 1 : i64} : (tensor<?x128xf32, "T">) -> tensor<?x64xf32, "T">
%q_heads = "graph.reshape"(%q_part) : (tensor<?x64xf32, "T">) -> tensor<?x4x16xf32, "T">
%q_turned = "graph.rope"(%q_heads, %cos, %sin) : (tensor<?x4x16xf32, "T">, tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4x16xf32, "T">
%k_part = "graph.slice"(%row) {axis = 1 : i64, start = 64 : i64, size = 32 : i64, step = 1 : i64} : (tensor<?x128xf32, "T">) -> tensor<?x32xf32, "T">
%k_heads = "graph.reshape"(%k_part) : (tensor<?x32xf32, "T">) -> tensor<?x2x16xf32, "T">
%k_turned = "graph.rope"(%k_heads, %cos, %sin) : (tensor<?x2x16xf32, "T">, tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x2x16xf32, "T">
%v_part = "graph.slice"(%row) {axis = 1 : i64, start = 96 : i64, size = 32 : i64, step = 1 : i64} : (tensor<?x128xf32, "T">) -> tensor<?x32xf32, "T">
%v_heads = "graph.reshape"(%v_part) : (tensor<?x32xf32, "T">) -> tensor<?x2x16xf32, "T">
"schedule.cache_write"(%k_turned, %positions, %0, %1) {cache = 0 : i64, element = "bf16", part = "key"} : (tensor<?x2x16xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
"schedule.cache_write"(%v_heads, %positions, %0, %1) {cache = 0 : i64, element = "bf16", part = "value"} : (tensor<?x2x16xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
%a = "schedule.attend"(%q_turned, %positions, %0, %1) {cache = 0 : i64, element = "bf16", key_heads = 2 : i64, scale = 2.500000e-01 : f64, softcap = 0.000000e+00 : f64, value_dim = 16 : i64, window = 0 : i64} : (tensor<?x4x16xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x4x16xf32, "T">
%flat = "graph.reshape"(%a) : (tensor<?x4x16xf32, "T">) -> tensor<?x64xf32, "T">
%6 = "schedule.round"(%flat) : (tensor<?x64xf32, "T">) -> tensor<?x64xbf16, "T">
%out = "schedule.matmul"(%6, %2) : (tensor<?x64xbf16, "T">, tensor<40x64xbf16>) -> tensor<?x40xf32, "T">
%wanted = "graph.select_rows"(%out, %rows) : (tensor<?x40xf32, "T">, tensor<?xi32, "L">) -> tensor<?x40xf32, "L">
%7 = "schedule.round"(%wanted) : (tensor<?x40xf32, "L">) -> tensor<?x40xbf16, "L">
%logits = "schedule.matmul"(%7, %4) : (tensor<?x40xbf16, "L">, tensor<23x40xbf16>) -> tensor<?x23xf32, "L">
"func.return"(%logits) : (tensor<?x23xf32, "L">) -> ()
// -->
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "panels_k2", name = "o", sources = ["o"]} : () -> tensor<40x64xbf16>
%3 = "schedule.weight"() {layout = "panels_k2", name = "qkv", sources = ["qkv"]} : () -> tensor<128x40xbf16>
%4 = "schedule.weight"() {layout = "panels_k2", name = "w", sources = ["w"]} : () -> tensor<23x40xbf16>
%f = "graph.constant"() {value = dense<[1.000000e+00, 7.500000e-01, 5.625000e-01, 4.218750e-01]> : tensor<4xf32>} : () -> tensor<4xf32>
%5 = "schedule.group"(%ids, %4) ({
^bb0(%6: tensor<?xi32, "T">, %7: tensor<23x40xbf16>):
  %8 = "schedule.lookup"(%6, %7) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<23x40xbf16>) -> tensor<?x40xf32, "T">
  %9 = "schedule.round"(%8) : (tensor<?x40xf32, "T">) -> tensor<?x40xbf16, "T">
  "schedule.yield"(%9) : (tensor<?x40xbf16, "T">) -> ()
}) {kind = "rows"} : (tensor<?xi32, "T">, tensor<23x40xbf16>) -> tensor<?x40xbf16, "T">
%10, %11 = "schedule.group"(%positions, %f) ({
^bb0(%12: tensor<?xi32, "T">, %13: tensor<4xf32>):
  %14, %15 = "graph.rope_table"(%12, %13) {scale = 1.000000e+00 : f64} : (tensor<?xi32, "T">, tensor<4xf32>) -> (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">)
  "schedule.yield"(%14, %15) : (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> ()
}) {kind = "rows"} : (tensor<?xi32, "T">, tensor<4xf32>) -> (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">)
%16 = "schedule.group"(%5, %3, %10, %11, %positions, %0, %1) ({
^bb0(%17: tensor<?x40xbf16, "T">, %18: tensor<128x40xbf16>, %19: tensor<?x4xf32, "T">, %20: tensor<?x4xf32, "T">, %21: tensor<?xi32, "T">, %22: tensor<?xi32, "T">, %23: tensor<?x?xi32>):
  %24 = "schedule.matmul"(%17, %18) : (tensor<?x40xbf16, "T">, tensor<128x40xbf16>) -> tensor<?x128xf32, "T">
  %25 = "graph.slice"(%24) {axis = 1 : i64, start = 0 : i64, size = 64 : i64, step = 1 : i64} : (tensor<?x128xf32, "T">) -> tensor<?x64xf32, "T">
  %26 = "graph.reshape"(%25) : (tensor<?x64xf32, "T">) -> tensor<?x4x16xf32, "T">
  %27 = "graph.rope"(%26, %19, %20) : (tensor<?x4x16xf32, "T">, tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4x16xf32, "T">
  %28 = "graph.slice"(%24) {axis = 1 : i64, start = 64 : i64, size = 32 : i64, step = 1 : i64} : (tensor<?x128xf32, "T">) -> tensor<?x32xf32, "T">
  %29 = "graph.reshape"(%28) : (tensor<?x32xf32, "T">) -> tensor<?x2x16xf32, "T">
  %30 = "graph.rope"(%29, %19, %20) : (tensor<?x2x16xf32, "T">, tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x2x16xf32, "T">
  "schedule.cache_write"(%30, %21, %22, %23) {cache = 0 : i64, element = "bf16", part = "key"} : (tensor<?x2x16xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
  %31 = "graph.slice"(%24) {axis = 1 : i64, start = 96 : i64, size = 32 : i64, step = 1 : i64} : (tensor<?x128xf32, "T">) -> tensor<?x32xf32, "T">
  %32 = "graph.reshape"(%31) : (tensor<?x32xf32, "T">) -> tensor<?x2x16xf32, "T">
  "schedule.cache_write"(%32, %21, %22, %23) {cache = 0 : i64, element = "bf16", part = "value"} : (tensor<?x2x16xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
  "schedule.yield"(%27) : (tensor<?x4x16xf32, "T">) -> ()
}) {kind = "linear"} : (tensor<?x40xbf16, "T">, tensor<128x40xbf16>, tensor<?x4xf32, "T">, tensor<?x4xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x4x16xf32, "T">
%33 = "schedule.group"(%16, %positions, %0, %1) ({
^bb0(%34: tensor<?x4x16xf32, "T">, %35: tensor<?xi32, "T">, %36: tensor<?xi32, "T">, %37: tensor<?x?xi32>):
  %38 = "schedule.attend"(%34, %35, %36, %37) {cache = 0 : i64, element = "bf16", key_heads = 2 : i64, scale = 2.500000e-01 : f64, softcap = 0.000000e+00 : f64, value_dim = 16 : i64, window = 0 : i64} : (tensor<?x4x16xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x4x16xf32, "T">
  "schedule.yield"(%38) : (tensor<?x4x16xf32, "T">) -> ()
}) {kind = "attention"} : (tensor<?x4x16xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x4x16xf32, "T">
%39 = "schedule.group"(%33) ({
^bb0(%40: tensor<?x4x16xf32, "T">):
  %41 = "graph.reshape"(%40) : (tensor<?x4x16xf32, "T">) -> tensor<?x64xf32, "T">
  %42 = "schedule.round"(%41) : (tensor<?x64xf32, "T">) -> tensor<?x64xbf16, "T">
  "schedule.yield"(%42) : (tensor<?x64xbf16, "T">) -> ()
}) {kind = "rows"} : (tensor<?x4x16xf32, "T">) -> tensor<?x64xbf16, "T">
%43 = "schedule.group"(%39, %2) ({
^bb0(%44: tensor<?x64xbf16, "T">, %45: tensor<40x64xbf16>):
  %46 = "schedule.matmul"(%44, %45) : (tensor<?x64xbf16, "T">, tensor<40x64xbf16>) -> tensor<?x40xf32, "T">
  "schedule.yield"(%46) : (tensor<?x40xf32, "T">) -> ()
}) {kind = "linear"} : (tensor<?x64xbf16, "T">, tensor<40x64xbf16>) -> tensor<?x40xf32, "T">
%47 = "schedule.group"(%43, %rows) ({
^bb0(%48: tensor<?x40xf32, "T">, %49: tensor<?xi32, "L">):
  %50 = "graph.select_rows"(%48, %49) : (tensor<?x40xf32, "T">, tensor<?xi32, "L">) -> tensor<?x40xf32, "L">
  %51 = "schedule.round"(%50) : (tensor<?x40xf32, "L">) -> tensor<?x40xbf16, "L">
  "schedule.yield"(%51) : (tensor<?x40xbf16, "L">) -> ()
}) {kind = "rows"} : (tensor<?x40xf32, "T">, tensor<?xi32, "L">) -> tensor<?x40xbf16, "L">
%52 = "schedule.group"(%47, %4) ({
^bb0(%53: tensor<?x40xbf16, "L">, %54: tensor<23x40xbf16>):
  %55 = "schedule.matmul"(%53, %54) : (tensor<?x40xbf16, "L">, tensor<23x40xbf16>) -> tensor<?x23xf32, "L">
  "schedule.yield"(%55) : (tensor<?x23xf32, "L">) -> ()
}) {kind = "linear"} : (tensor<?x40xbf16, "L">, tensor<23x40xbf16>) -> tensor<?x23xf32, "L">
"func.return"(%52) : (tensor<?x23xf32, "L">) -> ()
