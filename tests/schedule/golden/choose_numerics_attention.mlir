// ChooseNumerics
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">):
%w = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<9x8xf32>
%x = "graph.embedding"(%w, %ids) {offset = 0 : i64} : (tensor<9x8xf32>, tensor<?xi32, "T">) -> tensor<?x8xf32, "T">
%q = "graph.reshape"(%x) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
%a = "graph.attention"(%q, %q, %q) {layer = 0 : i64, scale = 5.000000e-01 : f64, window = 0 : i64, softcap = 0.000000e+00 : f64} : (tensor<?x2x4xf32, "T">, tensor<?x2x4xf32, "T">, tensor<?x2x4xf32, "T">) -> tensor<?x2x4xf32, "T">
%f = "graph.reshape"(%a) : (tensor<?x2x4xf32, "T">) -> tensor<?x8xf32, "T">
%y = "graph.add"(%f, %x) : (tensor<?x8xf32, "T">, tensor<?x8xf32, "T">) -> tensor<?x8xf32, "T">
%s = "graph.select_rows"(%y, %rows) : (tensor<?x8xf32, "T">, tensor<?xi32, "L">) -> tensor<?x8xf32, "L">
"func.return"(%s) : (tensor<?x8xf32, "L">) -> ()
// -->
  ^bb0(%ids: tensor<?xi32, "T">, %positions: tensor<?xi32, "T">, %rows: tensor<?xi32, "L">, %0: tensor<?xi32, "T">, %1: tensor<?x?xi32>):
%2 = "schedule.weight"() {layout = "rows", name = "w", sources = ["w"]} : () -> tensor<9x8xbf16>
%x = "schedule.lookup"(%ids, %2) {offset = 0 : i64} : (tensor<?xi32, "T">, tensor<9x8xbf16>) -> tensor<?x8xf32, "T">
%q = "graph.reshape"(%x) : (tensor<?x8xf32, "T">) -> tensor<?x2x4xf32, "T">
"schedule.cache_write"(%q, %positions, %0, %1) {cache = 0 : i64, element = "bf16", part = "key"} : (tensor<?x2x4xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
"schedule.cache_write"(%q, %positions, %0, %1) {cache = 0 : i64, element = "bf16", part = "value"} : (tensor<?x2x4xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> ()
%a = "schedule.attend"(%q, %positions, %0, %1) {cache = 0 : i64, element = "bf16", key_heads = 2 : i64, scale = 5.000000e-01 : f64, softcap = 0.000000e+00 : f64, value_dim = 4 : i64, window = 0 : i64} : (tensor<?x2x4xf32, "T">, tensor<?xi32, "T">, tensor<?xi32, "T">, tensor<?x?xi32>) -> tensor<?x2x4xf32, "T">
%f = "graph.reshape"(%a) : (tensor<?x2x4xf32, "T">) -> tensor<?x8xf32, "T">
%y = "graph.add"(%f, %x) : (tensor<?x8xf32, "T">, tensor<?x8xf32, "T">) -> tensor<?x8xf32, "T">
%s = "graph.select_rows"(%y, %rows) : (tensor<?x8xf32, "T">, tensor<?xi32, "L">) -> tensor<?x8xf32, "L">
"func.return"(%s) : (tensor<?x8xf32, "L">) -> ()
