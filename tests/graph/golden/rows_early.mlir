// SelectRowsEarly
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.add"(%4, %4) : (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%6 = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<4xf32>
%7 = "graph.rms_norm"(%5, %6) {eps = 1.000000e-06 : f64, weight_offset = 0.000000e+00 : f64} : (tensor<?x4xf32, "T">, tensor<4xf32>) -> tensor<?x4xf32, "T">
%8 = "graph.weight"() {name = "head", sources = ["head"]} : () -> tensor<9x4xf32>
%9 = "graph.linear"(%7, %8) {module = "lm_head"} : (tensor<?x4xf32, "T">, tensor<9x4xf32>) -> tensor<?x9xf32, "T">
%10 = "graph.select_rows"(%9, %2) : (tensor<?x9xf32, "T">, tensor<?xi32, "L">) -> tensor<?x9xf32, "L">
// -->
%3 = "graph.weight"() {name = "x", sources = ["x"]} : () -> tensor<11x4xf32>
%4 = "graph.embedding"(%3, %0) {offset = 0 : i64} : (tensor<11x4xf32>, tensor<?xi32, "T">) -> tensor<?x4xf32, "T">
%5 = "graph.add"(%4, %4) : (tensor<?x4xf32, "T">, tensor<?x4xf32, "T">) -> tensor<?x4xf32, "T">
%6 = "graph.weight"() {name = "w", sources = ["w"]} : () -> tensor<4xf32>
%7 = "graph.weight"() {name = "head", sources = ["head"]} : () -> tensor<9x4xf32>
%8 = "graph.select_rows"(%5, %2) : (tensor<?x4xf32, "T">, tensor<?xi32, "L">) -> tensor<?x4xf32, "L">
%9 = "graph.rms_norm"(%8, %6) {eps = 1.000000e-06 : f64, weight_offset = 0.000000e+00 : f64} : (tensor<?x4xf32, "L">, tensor<4xf32>) -> tensor<?x4xf32, "L">
%10 = "graph.linear"(%9, %7) {module = "lm_head"} : (tensor<?x4xf32, "L">, tensor<9x4xf32>) -> tensor<?x9xf32, "L">
