// FormGroups
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "panels_k1", name = "v", sources = ["v"]} : () -> tensor<9x6xf32>
%3 = "schedule.weight"() {layout = "panels_k1", name = "u", sources = ["u"]} : () -> tensor<6x40xf32>
%4 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x40xf32>
%x = "schedule.lookup"(%ids, %4) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x40xf32>) -> tensor<?x40xf32, "T">
%y = "schedule.matmul"(%x, %3) : (tensor<?x40xf32, "T">, tensor<6x40xf32>) -> tensor<?x6xf32, "T">
%s = "graph.select_rows"(%y, %rows) : (tensor<?x6xf32, "T">, tensor<?xi32, "L">) -> tensor<?x6xf32, "L">
%z = "schedule.matmul"(%s, %2) : (tensor<?x6xf32, "L">, tensor<9x6xf32>) -> tensor<?x9xf32, "L">
%5 = "schedule.peaks"(%z) {group = 64 : i64} : (tensor<?x9xf32, "L">) -> tensor<?x1xf32, "L">
"func.return"(%z, %5) : (tensor<?x9xf32, "L">, tensor<?x1xf32, "L">) -> ()
// -->
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "panels_k1", name = "v", sources = ["v"]} : () -> tensor<9x6xf32>
%3 = "schedule.weight"() {layout = "panels_k1", name = "u", sources = ["u"]} : () -> tensor<6x40xf32>
%4 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x40xf32>
%5 = "schedule.group"(%ids, %4) ({
^bb0(%6: tensor<?xi32, "T">, %7: tensor<9x40xf32>):
  %8 = "schedule.lookup"(%6, %7) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x40xf32>) -> tensor<?x40xf32, "T">
  "schedule.yield"(%8) : (tensor<?x40xf32, "T">) -> ()
}) {kind = "rows"} : (tensor<?xi32, "T">, tensor<9x40xf32>) -> tensor<?x40xf32, "T">
%9 = "schedule.group"(%5, %3) ({
^bb0(%10: tensor<?x40xf32, "T">, %11: tensor<6x40xf32>):
  %12 = "schedule.matmul"(%10, %11) : (tensor<?x40xf32, "T">, tensor<6x40xf32>) -> tensor<?x6xf32, "T">
  "schedule.yield"(%12) : (tensor<?x6xf32, "T">) -> ()
}) {kind = "linear"} : (tensor<?x40xf32, "T">, tensor<6x40xf32>) -> tensor<?x6xf32, "T">
%13 = "schedule.group"(%9, %rows) ({
^bb0(%14: tensor<?x6xf32, "T">, %15: tensor<?xi32, "L">):
  %16 = "graph.select_rows"(%14, %15) : (tensor<?x6xf32, "T">, tensor<?xi32, "L">) -> tensor<?x6xf32, "L">
  "schedule.yield"(%16) : (tensor<?x6xf32, "L">) -> ()
}) {kind = "rows"} : (tensor<?x6xf32, "T">, tensor<?xi32, "L">) -> tensor<?x6xf32, "L">
%17 = "schedule.group"(%13, %2) ({
^bb0(%18: tensor<?x6xf32, "L">, %19: tensor<9x6xf32>):
  %20 = "schedule.matmul"(%18, %19) : (tensor<?x6xf32, "L">, tensor<9x6xf32>) -> tensor<?x9xf32, "L">
  "schedule.yield"(%20) : (tensor<?x9xf32, "L">) -> ()
}) {kind = "linear"} : (tensor<?x6xf32, "L">, tensor<9x6xf32>) -> tensor<?x9xf32, "L">
%21 = "schedule.group"(%17) ({
^bb0(%22: tensor<?x9xf32, "L">):
  %23 = "schedule.peaks"(%22) {group = 64 : i64} : (tensor<?x9xf32, "L">) -> tensor<?x1xf32, "L">
  "schedule.yield"(%23) : (tensor<?x1xf32, "L">) -> ()
}) {kind = "rows"} : (tensor<?x9xf32, "L">) -> tensor<?x1xf32, "L">
"func.return"(%17, %21) : (tensor<?x9xf32, "L">, tensor<?x1xf32, "L">) -> ()
