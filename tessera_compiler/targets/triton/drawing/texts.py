"""The kernels of `drawing.full` as Triton source; docs/spec/program-gpu.md, "How the compiler's kernels draw", says
what they do.

They are written by hand, and not lowered from Tile IR, because what they are made of has one use there is and would
have a dozen ops: integers and floats of 64 bits, bits of words, running sums, histograms, loops that end when a value
is found, memory that belongs to seats.

A word in capitals is a number (`layout.py`), put in its place before the source is compiled; `BEGIN_CHUNK` and
`BEGIN_ROW` are what kernels of either grid begin with (`sources.py`). Some add to a number that others add to at the
same time; these are whole numbers, and no result depends on who comes first.
"""

from __future__ import annotations

SCORES_KERNEL = """@triton.jit
def draw_scores(logits, draws, counts, bias, bitmask, peaks, words):
    # grid: CHUNKS, L
    BEGIN_CHUNK
    if tl.load(draw) < 0:
        return
    flags = tl.load(draw + 1)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    row_peaks = peaks + row.to(tl.int64) * PEAK_STRIDE
    row_words = words + row.to(tl.int64) * WORD_STRIDE
    if flags & FLAG_LOGPROBS:
        raw = raw_of(logits, row, tokens)
        wrong = tl.max((raw != raw).to(tl.int32), 0)
        tl.store(row_peaks + RAW_PEAKS + chunk, tl.where(wrong == 1, float("inf"), tl.max(raw, 0)))
        left = (tokens < VOCABULARY) & (raw == raw)
        for place in range(tl.load(draw + 12)):
            best = tl.max(tl.where(left, raw, float("-inf")), 0)
            found = tl.min(tl.where(left & (raw == best), tokens, NOBODY), 0)
            tl.store(row_peaks + TOP_VALUES + chunk * TOP_PADDED + place, best)
            tl.store(row_words + TOP_IDS + chunk * TOP_PADDED + place, found)
            left = left & (tokens != found)
    x = scores(logits, draw, counts, bias, bitmask, row, chunk)
    wrong = tl.max((x != x).to(tl.int32), 0)
    best = tl.max(x, 0)
    tl.store(row_peaks + chunk, tl.where(wrong == 1, float("inf"), best))
    tl.store(row_words + HIGHEST + chunk, tl.min(tl.where(x == best, tokens, NOBODY), 0))
"""

WEIGHTS_KERNEL = """@triton.jit
def draw_weights(logits, draws, counts, bias, bitmask, peaks, words, sums):
    # grid: CHUNKS, L
    BEGIN_CHUNK
    if tl.load(draw) < 0:
        return
    flags = tl.load(draw + 1)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    row_sums = sums + row.to(tl.int64) * SUM_STRIDE
    if flags & FLAG_LOGPROBS:
        raw = raw_of(logits, row, tokens)
        depth = peak_of(peaks, row, RAW_PEAKS).to(tl.float64) - raw.to(tl.float64)
        known = (tokens < VOCABULARY) & (depth < DEEPEST)
        tl.store(row_sums + RAW_SUMS + chunk, tl.sum(tl.where(known, units(power(tl.where(known, depth, 0.0))), 0), 0))
    if (flags & FLAG_GREEDY) == 0:
        x = scores(logits, draw, counts, bias, bitmask, row, chunk)
        depth = depths(x, draw, peak_of(peaks, row, 0))
        weight = weights(depth)
        if filters(draw):
            level = tl.where(weight > 0, (depth * LEVELS_PER_UNIT).to(tl.int32), 0)
            counted = tl.histogram(level, LEVELS, mask=weight > 0)
            at = words + row.to(tl.int64) * WORD_STRIDE + COUNTS + chunk * LEVELS
            tl.store(at + tl.arange(0, LEVELS), counted)
        else:
            weight = tl.where(weight >= least_of(draw), weight, 0)
        tl.store(row_sums + chunk, tl.sum(weight, 0))
"""

PLAN_KERNEL = """@triton.jit
def draw_plan(draws, words, sums):
    # grid: L
    BEGIN_ROW
    if not filtered(draw):
        return
    row_words = words + row.to(tl.int64) * WORD_STRIDE
    row_sums = sums + row.to(tl.int64) * SUM_STRIDE
    chunks = tl.arange(0, CHUNKS_PADDED)
    levels = tl.arange(0, LEVELS)
    at = row_words + COUNTS + chunks[:, None] * LEVELS + levels[None, :]
    by_level = tl.sum(tl.load(at, mask=(chunks < CHUNKS)[:, None] & (levels >= 0)[None, :], other=0), 0)
    top_k = tl.load(draw + 3)
    top_p = number(draw, 4).to(tl.float64)
    by_count = (top_k > 0) & (top_k < tl.sum(by_level, 0))
    if by_count:
        first = tl.sum((tl.cumsum(by_level, 0) < top_k).to(tl.int32), 0)
        last = first
    else:
        total = over_chunks(row_sums)
        wanted = part(total, top_p)
        spare = (total - wanted).to(tl.float64)
        # No token weighs more than the first of its level, and none less than the first of the next.
        heaviest = by_level.to(tl.float64) * (power(levels.to(tl.float64) / LEVELS_PER_UNIT) * UNIT_FLOAT + 1.0)
        lightest = power((levels + 1).to(tl.float64) / LEVELS_PER_UNIT) * UNIT_FLOAT - 1.0
        lightest = by_level.to(tl.float64) * tl.maximum(lightest, 0.0)
        deeper = levels[:, None] < levels[None, :]
        most_below = tl.sum(tl.where(deeper, heaviest[None, :], 0.0), 1)
        least_below = tl.sum(tl.where(deeper, lightest[None, :], 0.0), 1)
        most_above = tl.sum(tl.where(deeper, 0.0, heaviest[None, :]), 1)
        short = (least_below * 0.999999 > spare) | (most_above * 1.000001 < wanted.to(tl.float64))
        first = tl.sum(short.to(tl.int32), 0)
        last = tl.sum((most_below * 1.000001 > spare).to(tl.int32), 0)
    # Weights may be off by one from what their levels say.
    low = tl.maximum(units(power((last + 1).to(tl.float64) / LEVELS_PER_UNIT)) - 2, 1)
    high = tl.minimum(units(power(first.to(tl.float64) / LEVELS_PER_UNIT)) + 2, UNIT + 1)
    if by_count & (top_p < 1.0):
        first = tl.full((), 0, tl.int32)
    length = tl.sum(tl.where((levels >= first) & (levels <= last), by_level, 0), 0)
    active = tl.where(by_count, ACTIVE_TOP_K, 0) + tl.where(top_p < 1.0, ACTIVE_TOP_P, 0)
    if active == 0:
        low = tl.full((), 1, tl.int64)
        high = tl.full((), 1, tl.int64)
        length = tl.full((), 0, tl.int32)
    shift = tl.full((), -1, tl.int32)
    if length > LIST_LENGTH:
        bins = tl.arange(0, BINS)
        tl.store(row_words + FINE + bins, tl.zeros_like(bins))
        shift = tl.sum((((high - low - 1) >> tl.arange(0, 64).to(tl.int64)) >= BINS).to(tl.int32), 0)
    tl.store(row_words + ACTIVE, active)
    tl.store(row_words + SHIFT, shift)
    tl.store(row_words + LENGTH, 0)
    tl.store(row_sums + LOW, low)
    tl.store(row_sums + HIGH, high)
"""

NARROW_KERNEL = """@triton.jit
def draw_narrow(logits, draws, counts, bias, bitmask, peaks, words, sums):
    # grid: CHUNKS, L
    BEGIN_CHUNK
    if not filtered(draw):
        return
    row_words = words + row.to(tl.int64) * WORD_STRIDE
    row_sums = sums + row.to(tl.int64) * SUM_STRIDE
    shift = tl.load(row_words + SHIFT)
    if shift < 0:
        return
    low = tl.load(row_sums + LOW)
    high = tl.load(row_sums + HIGH)
    weight = heavy_of(logits, draw, counts, bias, bitmask, row, chunk, peak_of(peaks, row, 0))
    above = weight >= high
    tl.store(row_sums + WIDE_SUMS + chunk, tl.sum(tl.where(above, weight, 0), 0))
    tl.store(row_words + WIDE_COUNTS + chunk, tl.sum(above.to(tl.int32), 0))
    inside = (weight >= low) & (weight < high)
    at = row_words + FINE + tl.where(inside, (weight - low) >> shift, 0)
    tl.atomic_add(at, tl.full((CHUNK,), 1, tl.int32), mask=inside, sem="relaxed")
"""

LIST_KERNEL = """@triton.jit
def draw_list(logits, draws, counts, bias, bitmask, peaks, words, sums, lists):
    # grid: CHUNKS, L
    BEGIN_CHUNK
    if not filtered(draw):
        return
    row_words = words + row.to(tl.int64) * WORD_STRIDE
    row_sums = sums + row.to(tl.int64) * SUM_STRIDE
    low = tl.load(row_sums + LOW)
    high = tl.load(row_sums + HIGH)
    shift = tl.load(row_words + SHIFT)
    if shift >= 0:
        low, high = narrowed(draw, row_words, row_sums, low, high, shift)
    if tl.load(row_words + ACTIVE) == ACTIVE_TOP_K + ACTIVE_TOP_P:
        # How much is wanted by top_p depends on all that top_k leaves.
        high = tl.full((), UNIT + 1, tl.int64)
    if chunk == 0:
        tl.store(row_sums + BAND_LOW, low)
        tl.store(row_sums + BAND_HIGH, high)
    weight = heavy_of(logits, draw, counts, bias, bitmask, row, chunk, peak_of(peaks, row, 0))
    above = weight >= tl.maximum(high, least_of(draw))
    tl.store(row_sums + ABOVE_SUMS + chunk, tl.sum(tl.where(above, weight, 0), 0))
    tl.store(row_words + ABOVE_COUNTS + chunk, tl.sum(above.to(tl.int32), 0))
    inside = (weight >= low) & (weight < high)
    number_inside = tl.sum(inside.to(tl.int32), 0)
    if (row < LISTS) & (number_inside > 0):
        begin = tl.atomic_add(row_words + LENGTH, number_inside, sem="relaxed")
        at = begin + tl.cumsum(inside.to(tl.int32), 0) - 1
        keys = keys_of(weight, chunk)
        tl.store(lists + row.to(tl.int64) * LIST_LENGTH + at, keys, mask=inside & (at < LIST_LENGTH))
"""

FINISH_KERNEL = """@triton.jit
def draw_token(logits, draws, counts, bias, bitmask, peaks, words, sums, lists, feedback, ids, logprobs):
    # grid: L
    BEGIN_ROW
    seat = tl.load(draw).to(tl.int64)
    if seat < 0:
        return
    flags = tl.load(draw + 1)
    chunks = tl.arange(0, CHUNKS_PADDED)
    row_words = words + row.to(tl.int64) * WORD_STRIDE
    row_sums = sums + row.to(tl.int64) * SUM_STRIDE
    row_peaks = peaks + row.to(tl.int64) * PEAK_STRIDE
    peak = peak_of(peaks, row, 0)
    token = tl.full((), -1, tl.int32)
    if (peak > float("-inf")) & (peak < float("inf")):
        if (flags & FLAG_GREEDY) != 0:
            best = tl.load(row_peaks + chunks, mask=chunks < CHUNKS, other=float("-inf")) == peak
            highest = tl.load(row_words + HIGHEST + chunks, mask=chunks < CHUNKS, other=NOBODY)
            token = tl.min(tl.where(best, highest, NOBODY), 0)
        else:
            low = tl.load(draw + 10).to(tl.int64) & 4294967295
            uniform = ((tl.load(draw + 11).to(tl.int64) << 32) | low).to(tl.float64, bitcast=True)
            limited = filters(draw)
            by_chunk = tl.load(row_sums + tl.where(limited, ABOVE_SUMS, 0) + chunks, mask=chunks < CHUNKS, other=0)
            total = tl.sum(by_chunk, 0)
            # Tokens whose keys are at least `border` are kept.
            least = least_of(draw)
            border = least << TOKEN_BITS
            low = tl.full((), 1, tl.int64)
            high = tl.full((), 1, tl.int64)
            if limited:
                low = tl.load(row_sums + BAND_LOW)
                high = tl.load(row_sums + BAND_HIGH)
            chunk = tl.full((), 0, tl.int32)
            begin = tl.full((), 0, tl.int64)
            point = tl.full((), 0, tl.int64)
            if low < high:
                length = tl.load(row_words + LENGTH)
                listed = (row < LISTS) & (length <= LIST_LENGTH)
                tiles = tl.where(listed, 1, CHUNKS)
                places = tl.arange(0, CHUNK)
                held = tl.load(
                    lists + row.to(tl.int64) * LIST_LENGTH + places, mask=listed & (places < length), other=0
                )
                above_count = over_chunks(row_words + ABOVE_COUNTS)
                above_sum = total
                active = tl.load(row_words + ACTIVE)
                top_k = tl.load(draw + 3)
                total = over_chunks(row_sums)
                floor = low << TOKEN_BITS
                for filter in range(3):
                    wanted = part(total, number(draw, 4).to(tl.float64))
                    high_end = high << TOKEN_BITS
                    if filter == 2:
                        # There is nothing to look for: what is left weighs so much.
                        floor = tl.maximum(floor, border)
                        high_end = floor + 1
                    if (filter == 2) | ((active & (filter + 1)) != 0):
                        # Halves what is left of [floor, high_end) until one key is there, which is the last to be kept.
                        high_count = above_count
                        kept_count = tl.full((), NOBODY, tl.int32)
                        while (kept_count == NOBODY) | ((high_end - floor > 1) & (kept_count - high_count > 1)):
                            middle = tl.where(kept_count == NOBODY, floor, floor + ((high_end - floor) >> 1))
                            count = above_count
                            reached = above_sum
                            for index in range(tiles):
                                keys = tile_of(
                                    logits, draw, counts, bias, bitmask, row, index, peak, low, high, listed, held
                                )
                                heavy = keys >= middle
                                count += tl.sum(heavy.to(tl.int32), 0)
                                reached += tl.sum(tl.where(heavy, keys >> TOKEN_BITS, 0), 0)
                            enough = tl.where(filter == 0, count >= top_k, reached >= wanted)
                            enough = enough | (kept_count == NOBODY)
                            floor = tl.where(enough, middle, floor)
                            kept_count = tl.where(enough, count, kept_count)
                            total = tl.where(enough, reached, total)
                            high_end = tl.where(enough, high_end, middle)
                            high_count = tl.where(enough, high_count, count)
                border = floor
                point = tl.minimum((total.to(tl.float64) * uniform).to(tl.int64), total - 1)
                if listed:
                    kept = tl.where(held >= border, held >> TOKEN_BITS, 0)
                    owners = (LAST_TOKEN - (held & LAST_TOKEN)) // CHUNK
                    end = tl.full((), CHUNKS_PADDED, tl.int32)
                    while end - chunk > 1:
                        middle = (chunk + end) >> 1
                        before = tl.sum(tl.where(owners < middle, kept, 0), 0)
                        before += tl.sum(tl.where(chunks < middle, by_chunk, 0), 0)
                        begin = tl.where(before <= point, before, begin)
                        chunk, end = tl.where(before <= point, middle, chunk), tl.where(before <= point, end, middle)
                else:
                    before = tl.full((), 0, tl.int64)
                    for index in range(CHUNKS):
                        keys = tile_of(logits, draw, counts, bias, bitmask, row, index, peak, low, high, listed, held)
                        before += tl.sum(tl.where(keys >= border, keys >> TOKEN_BITS, 0), 0)
                        before += tl.load(row_sums + ABOVE_SUMS + index)
                        begin = tl.where(before <= point, before, begin)
                        chunk += (before <= point).to(tl.int32)
            else:
                point = tl.minimum((total.to(tl.float64) * uniform).to(tl.int64), total - 1)
                past = (tl.cumsum(by_chunk, 0) <= point) & (chunks < CHUNKS)
                chunk = tl.sum(past.to(tl.int32), 0)
                begin = tl.sum(tl.where(past, by_chunk, 0), 0)
            weight = heavy_of(logits, draw, counts, bias, bitmask, row, chunk, peak)
            weight = tl.where(keys_of(weight, chunk) >= border, weight, 0)
            token = chunk * CHUNK + tl.sum((begin + tl.cumsum(weight, 0) <= point).to(tl.int32), 0)
    tl.store(ids + row, token)
    tl.store(feedback + seat * FEEDBACK_STRIDE, token)
    if token >= 0:
        if (flags & FLAG_PENALTIES) != 0:
            at = counts + seat * COUNT_STRIDE + token
            count = tl.load(at).to(tl.int32)
            more = tl.where((count & MOST_COUNTED) == MOST_COUNTED, count, count + 1)
            tl.debug_barrier()
            tl.store(at, more.to(tl.int16))
        if (flags & FLAG_LOGPROBS) != 0:
            top = tl.load(draw + 12)
            share = over_chunks(row_sums + RAW_SUMS).to(tl.float64) / UNIT_FLOAT
            normalizer = peak_of(peaks, row, RAW_PEAKS).to(tl.float64) + tl.log(share)
            result = logprobs + row * LOGPROB_WORDS
            chosen = tl.load(logits + row.to(tl.int64) * LOGIT_STRIDE + token).to(tl.float64)
            tl.store(result, (chosen - normalizer).to(tl.float32))
            slots = tl.arange(0, CHUNKS_PADDED * TOP_PADDED)
            inside = (slots % TOP_PADDED < top) & (slots < CHUNKS * TOP_PADDED)
            values = tl.load(row_peaks + TOP_VALUES + slots, mask=inside, other=float("-inf"))
            names = tl.load(row_words + TOP_IDS + slots, mask=inside, other=NOBODY)
            left = inside
            for each in range(top):
                best = tl.max(tl.where(left, values, float("-inf")), 0)
                found = tl.min(tl.where(left & (values == best), names, NOBODY), 0)
                tl.store(result + 1 + each, found.to(tl.float32, bitcast=True))
                tl.store(result + 1 + MOST_TOP + each, (best.to(tl.float64) - normalizer).to(tl.float32))
                left = left & (names != found)
"""
