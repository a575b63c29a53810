// FindPeaks
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "panels_k1", name = "v", sources = ["v"]} : () -> tensor<9x6xf32>
%3 = "schedule.weight"() {layout = "panels_k1", name = "u", sources = ["u"]} : () -> tensor<6x40xf32>
%4 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x40xf32>
%x = "schedule.lookup"(%ids, %4) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x40xf32>) -> tensor<?x40xf32, "T">
%y = "schedule.matmul"(%x, %3) : (tensor<?x40xf32, "T">, tensor<6x40xf32>) -> tensor<?x6xf32, "T">
%s = "graph.select_rows"(%y, %rows) : (tensor<?x6xf32, "T">, tensor<?xi32, "L">) -> tensor<?x6xf32, "L">
%z = "schedule.matmul"(%s, %2) : (tensor<?x6xf32, "L">, tensor<9x6xf32>) -> tensor<?x9xf32, "L">
"func.return"(%z) : (tensor<?x9xf32, "L">) -> ()
// -->
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
