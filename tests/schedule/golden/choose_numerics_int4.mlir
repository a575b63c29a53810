// ChooseNumerics
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">):
%w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x40xf32>
%x = "graph.embedding"(%w, %ids) {offset = 0 : i64} : (tensor<9x40xf32>, tensor<?xi32, "T">) -> tensor<?x40xf32, "T">
%u = "graph.weight"() {name = "u", sources = ["u"]} : () -> tensor<6x40xf32>
%y = "graph.linear"(%x, %u) : (tensor<?x40xf32, "T">, tensor<6x40xf32>) -> tensor<?x6xf32, "T">
%s = "graph.select_rows"(%y, %rows) : (tensor<?x6xf32, "T">, tensor<?xi32, "L">) -> tensor<?x6xf32, "L">
%v = "graph.weight"() {name = "v", sources = ["v"]} : () -> tensor<9x6xf32>
%z = "graph.linear"(%s, %v) : (tensor<?x6xf32, "L">, tensor<9x6xf32>) -> tensor<?x9xf32, "L">
"func.return"(%z) : (tensor<?x9xf32, "L">) -> ()
// -->
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "rows", name = "v.scales", scales_of = "v", sources = ["v"]} : () -> tensor<9xf32>
%3 = "schedule.weight"() {layout = "panels_k4", name = "v", sources = ["v"]} : () -> tensor<9x6xui8>
%4 = "schedule.weight"() {group = 32 : i64, layout = "panels_k8", name = "u", sources = ["u"]} : () -> tensor<6x40xui4>
%5 = "schedule.weight"() {group = 32 : i64, layout = "rows", name = "u.factors", scales_of = "u", sources = ["u"]} : () -> tensor<6xf32>
%6 = "schedule.weight"() {group = 32 : i64, layout = "panels_k1", name = "u.scales", part = "scales", scales_of = "u", sources = ["u"]} : () -> tensor<6x2xui8>
%7 = "schedule.weight"() {group = 32 : i64, layout = "panels_k1", name = "u.zeros", part = "zeros", scales_of = "u", sources = ["u"]} : () -> tensor<6x2xui8>
%8 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x40xbf16>
%x = "schedule.lookup"(%ids, %8) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x40xbf16>) -> tensor<?x40xf32, "T">
%9, %10, %11 = "schedule.quantize"(%x) {group = 32 : i64} : (tensor<?x40xf32, "T">) -> (tensor<?x40xi8, "T">, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">)
%y = "schedule.matmul"(%9, %4, %10, %11, %5, %6, %7) {group = 32 : i64} : (tensor<?x40xi8, "T">, tensor<6x40xui4>, tensor<?x2xf32, "T">, tensor<?x2xi32, "T">, tensor<6xf32>, tensor<6x2xui8>, tensor<6x2xui8>) -> tensor<?x6xf32, "T">
%s = "graph.select_rows"(%y, %rows) : (tensor<?x6xf32, "T">, tensor<?xi32, "L">) -> tensor<?x6xf32, "L">
%12, %13, %14 = "schedule.quantize"(%s) {group = 64 : i64} : (tensor<?x6xf32, "L">) -> (tensor<?x6xi8, "L">, tensor<?x1xf32, "L">, tensor<?x1xi32, "L">)
%z = "schedule.matmul"(%12, %3, %13, %14, %2) {group = 64 : i64} : (tensor<?x6xi8, "L">, tensor<9x6xui8>, tensor<?x1xf32, "L">, tensor<?x1xi32, "L">, tensor<9xf32>) -> tensor<?x9xf32, "L">
"func.return"(%z) : (tensor<?x9xf32, "L">) -> ()
