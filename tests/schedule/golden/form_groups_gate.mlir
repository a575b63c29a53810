// FormGroups
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "rows", name = "v.scales", scales_of = "v", sources = ["v"]} : () -> tensor<64xf32>
%3 = "schedule.weight"() {layout = "panels_k4", name = "v", sources = ["v"]} : () -> tensor<64x64xui8>
%4 = "schedule.weight"() {layout = "rows", name = "u.scales", scales_of = "u", sources = ["a", "b"]} : () -> tensor<128xf32>
%5 = "schedule.weight"() {layout = "panels_k4", name = "u", sources = ["a", "b"]} : () -> tensor<128x64xui8>
%6 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x64xbf16>
%x = "schedule.lookup"(%ids, %6) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x64xbf16>) -> tensor<?x64xf32, "T">
%7, %8, %9 = "schedule.quantize"(%x) {group = 64 : i64} : (tensor<?x64xf32, "T">) -> (tensor<?x64xi8, "T">, tensor<?x1xf32, "T">, tensor<?x1xi32, "T">)
%y = "schedule.matmul"(%7, %5, %8, %9, %4) {group = 64 : i64} : (tensor<?x64xi8, "T">, tensor<128x64xui8>, tensor<?x1xf32, "T">, tensor<?x1xi32, "T">, tensor<128xf32>) -> tensor<?x128xf32, "T">
%a = "graph.slice"(%y) {axis = 1 : i64, start = 0 : i64, size = 64 : i64, step = 1 : i64} : (tensor<?x128xf32, "T">) -> tensor<?x64xf32, "T">
%b = "graph.slice"(%y) {axis = 1 : i64, start = 64 : i64, size = 64 : i64, step = 1 : i64} : (tensor<?x128xf32, "T">) -> tensor<?x64xf32, "T">
%g = "graph.gated"(%a, %b) {activation = "silu"} : (tensor<?x64xf32, "T">, tensor<?x64xf32, "T">) -> tensor<?x64xf32, "T">
%10, %11, %12 = "schedule.quantize"(%g) {group = 32 : i64} : (tensor<?x64xf32, "T">) -> (tensor<?x64xi8, "T">, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">)
%d = "schedule.matmul"(%10, %3, %11, %12, %2) {group = 32 : i64} : (tensor<?x64xi8, "T">, tensor<64x64xui8>, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">, tensor<64xf32>) -> tensor<?x64xf32, "T">
%s = "graph.select_rows"(%d, %rows) : (tensor<?x64xf32, "T">, tensor<?xi32, "L">) -> tensor<?x64xf32, "L">
"func.return"(%s) : (tensor<?x64xf32, "L">) -> ()
// -->
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "rows", name = "v.scales", scales_of = "v", sources = ["v"]} : () -> tensor<64xf32>
%3 = "schedule.weight"() {layout = "panels_k4", name = "v", sources = ["v"]} : () -> tensor<64x64xui8>
%4 = "schedule.weight"() {layout = "rows", name = "u.scales", scales_of = "u", sources = ["a", "b"]} : () -> tensor<128xf32>
%5 = "schedule.weight"() {layout = "panels_k4", name = "u", sources = ["a", "b"]} : () -> tensor<128x64xui8>
%6 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x64xbf16>
%7, %8, %9 = "schedule.group"(%ids, %6) ({
^bb0(%10: tensor<?xi32, "T">, %11: tensor<9x64xbf16>):
  %12 = "schedule.lookup"(%10, %11) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x64xbf16>) -> tensor<?x64xf32, "T">
  %13, %14, %15 = "schedule.quantize"(%12) {group = 64 : i64} : (tensor<?x64xf32, "T">) -> (tensor<?x64xi8, "T">, tensor<?x1xf32, "T">, tensor<?x1xi32, "T">)
  "schedule.yield"(%13, %14, %15) : (tensor<?x64xi8, "T">, tensor<?x1xf32, "T">, tensor<?x1xi32, "T">) -> ()
}) {kind = "rows"} : (tensor<?xi32, "T">, tensor<9x64xbf16>) -> (tensor<?x64xi8, "T">, tensor<?x1xf32, "T">, tensor<?x1xi32, "T">)
%16, %17, %18 = "schedule.group"(%7, %5, %8, %9, %4) ({
^bb0(%19: tensor<?x64xi8, "T">, %20: tensor<128x64xui8>, %21: tensor<?x1xf32, "T">, %22: tensor<?x1xi32, "T">, %23: tensor<128xf32>):
  %24 = "schedule.matmul"(%19, %20, %21, %22, %23) {group = 64 : i64} : (tensor<?x64xi8, "T">, tensor<128x64xui8>, tensor<?x1xf32, "T">, tensor<?x1xi32, "T">, tensor<128xf32>) -> tensor<?x128xf32, "T">
  %25 = "graph.slice"(%24) {axis = 1 : i64, start = 0 : i64, size = 64 : i64, step = 1 : i64} : (tensor<?x128xf32, "T">) -> tensor<?x64xf32, "T">
  %26 = "graph.slice"(%24) {axis = 1 : i64, start = 64 : i64, size = 64 : i64, step = 1 : i64} : (tensor<?x128xf32, "T">) -> tensor<?x64xf32, "T">
  %27 = "graph.gated"(%25, %26) {activation = "silu"} : (tensor<?x64xf32, "T">, tensor<?x64xf32, "T">) -> tensor<?x64xf32, "T">
  %28, %29, %30 = "schedule.quantize"(%27) {group = 32 : i64} : (tensor<?x64xf32, "T">) -> (tensor<?x64xi8, "T">, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">)
  "schedule.yield"(%28, %29, %30) : (tensor<?x64xi8, "T">, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">) -> ()
}) {kind = "linear"} : (tensor<?x64xi8, "T">, tensor<128x64xui8>, tensor<?x1xf32, "T">, tensor<?x1xi32, "T">, tensor<128xf32>) -> (tensor<?x64xi8, "T">, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">)
%31 = "schedule.group"(%16, %3, %17, %18, %2) ({
^bb0(%32: tensor<?x64xi8, "T">, %33: tensor<64x64xui8>, %34: tensor<?x2xf32, "T">, %35: tensor<?x2xi32, "T">, %36: tensor<64xf32>):
  %37 = "schedule.matmul"(%32, %33, %34, %35, %36) {group = 32 : i64} : (tensor<?x64xi8, "T">, tensor<64x64xui8>, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">, tensor<64xf32>) -> tensor<?x64xf32, "T">
  "schedule.yield"(%37) : (tensor<?x64xf32, "T">) -> ()
}) {kind = "linear"} : (tensor<?x64xi8, "T">, tensor<64x64xui8>, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">, tensor<64xf32>) -> tensor<?x64xf32, "T">
%38 = "schedule.group"(%31, %rows) ({
^bb0(%39: tensor<?x64xf32, "T">, %40: tensor<?xi32, "L">):
  %41 = "graph.select_rows"(%39, %40) : (tensor<?x64xf32, "T">, tensor<?xi32, "L">) -> tensor<?x64xf32, "L">
  "schedule.yield"(%41) : (tensor<?x64xf32, "L">) -> ()
}) {kind = "rows"} : (tensor<?x64xf32, "T">, tensor<?xi32, "L">) -> tensor<?x64xf32, "L">
"func.return"(%38) : (tensor<?x64xf32, "L">) -> ()
