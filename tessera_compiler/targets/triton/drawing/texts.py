"""The kernels of `drawing.full` as Triton source; docs/spec/program-gpu.md, "How the compiler's kernels draw", says
what they do.

They are written by hand, and not lowered from Tile IR, because what they are made of has one use there is and would
have a dozen ops: integers and floats of 64 bits, bits of words, running sums, histograms, loops that end when a value
is found, memory that belongs to seats.

A word in capitals is a number (`layout.py`), put in its place before the source is compiled. `BEGIN` becomes what a
kernel does before it reads what the launch before it wrote.
"""

from __future__ import annotations

POWER = '''@triton.jit
def power(depth):
    """e to the power of -depth, for any depth from 0 on: a few steps in 64 bits that round the same everywhere."""
    depth = tl.minimum(depth, 700.0)
    whole = tl.floor(depth * 1.4426950408889634 + 0.5)
    rest = (whole * 0.6931471803691238 - depth) + whole * 1.9082149292705877e-10
    sum = 2.505210838544172e-08
    sum = sum * rest + 2.755731922398589e-07
    sum = sum * rest + 2.7557319223985893e-06
    sum = sum * rest + 2.48015873015873e-05
    sum = sum * rest + 0.0001984126984126984
    sum = sum * rest + 0.001388888888888889
    sum = sum * rest + 0.008333333333333333
    sum = sum * rest + 0.041666666666666664
    sum = sum * rest + 0.16666666666666666
    sum = sum * rest + 0.5
    sum = sum * rest + 1.0
    sum = sum * rest + 1.0
    return sum * ((1023 - whole.to(tl.int64)) << 52).to(tl.float64, bitcast=True)
'''

UNITS = '''@triton.jit
def units(value):
    """A weight as a whole number of units: sums of these are exact, so it does not matter in which order they are
    made."""
    return (value * UNIT_FLOAT + 0.5).to(tl.int64)
'''

NUMBER = '''@triton.jit
def number(draw, word):
    """A float32 of a draw."""
    return tl.load(draw + word).to(tl.float32, bitcast=True)
'''

FILTERS = '''@triton.jit
def filters(draw):
    """Whether top_k or top_p may remove tokens."""
    top_k = tl.load(draw + 3)
    return ((top_k > 0) & (top_k < VOCABULARY)) | (number(draw, 4) < 1.0)
'''

SCORES = '''@triton.jit
def scores(logits, draw, counts, bias, bitmask, row, chunk):
    """The logits of a chunk's tokens with the draw's bitmask, biases and penalties; past the last token -inf."""
    seat = tl.load(draw).to(tl.int64)
    flags = tl.load(draw + 1)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = tokens < VOCABULARY
    x = tl.load(logits + row.to(tl.int64) * LOGIT_STRIDE + tokens, mask=inside, other=float("-inf"))
    if flags & FLAG_BITMASK:
        words = tl.load(bitmask + seat * BITMASK_STRIDE + tokens // 32, mask=inside, other=0)
        x = tl.where(((words >> (tokens % 32)) & 1) == 1, x, float("-inf"))
    if flags & FLAG_BIAS:
        pairs = bias + seat * BIAS_STRIDE
        for pair in range(tl.load(draw + 9)):
            token = tl.load(pairs + 2 * pair)
            value = tl.load(pairs + 2 * pair + 1).to(tl.float32, bitcast=True)
            x = tl.where(tokens == token, x + value, x)
    if flags & FLAG_PENALTIES:
        count = tl.load(counts + seat * COUNT_STRIDE + tokens, mask=inside, other=0).to(tl.int32)
        times = count & MOST_COUNTED
        factor = number(draw, 6)
        repeated = tl.where(x < 0.0, x * factor, tl.div_rn(x, tl.zeros_like(x) + factor))
        x = tl.where(count != 0, repeated, x)
        penalty = number(draw, 7) * times.to(tl.float32) + number(draw, 8)
        x = tl.where(times > 0, x - penalty, x)
    return tl.where(inside, x, float("-inf"))
'''

DEPTHS = '''@triton.jit
def depths(x, draw, peak):
    """How far below the row's highest logit each is, in units of the temperature; at most DEEPEST."""
    scale = 1.0 / number(draw, 2).to(tl.float64)
    depth = (peak.to(tl.float64) - x.to(tl.float64)) * scale
    return tl.where(depth < DEEPEST, depth, DEEPEST)
'''

WEIGHTS = '''@triton.jit
def weights(depth):
    """The weights in units; 0 at DEEPEST."""
    return tl.where(depth < DEEPEST, units(power(depth)), 0)
'''

PEAK = '''@triton.jit
def peak_of(peaks, row, first):
    """The highest of a row's chunks; not finite if one of them has a logit that is not a number."""
    chunks = tl.arange(0, CHUNKS_PADDED)
    at = peaks + row.to(tl.int64) * PEAK_STRIDE + first + chunks
    return tl.max(tl.load(at, mask=chunks < CHUNKS, other=float("-inf")), 0)
'''

PART = '''@triton.jit
def part(total, share):
    """The least number of units that is at least a share of the total."""
    return tl.maximum(tl.minimum(tl.ceil(total.to(tl.float64) * share).to(tl.int64), total), 1)
'''

TILE = '''@triton.jit
def tile_of(logits, draw, counts, bias, bitmask, lists, row, peak, listed, length, index):
    """Weights of tokens in the order of their ids: of those in the row's list, or else of a chunk."""
    if listed:
        at = index * CHUNK + tl.arange(0, CHUNK)
        found = tl.load(lists + row.to(tl.int64) * LIST_LENGTH + at, mask=at < length, other=0)
    else:
        found = weights(depths(scores(logits, draw, counts, bias, bitmask, row, index), draw, peak))
    return found
'''

SCORES_KERNEL = """@triton.jit
def draw_scores(logits, draws, counts, bias, bitmask, peaks, words):
    # grid: CHUNKS, L
    BEGIN
    chunk = tl.program_id(0)
    row = tl.program_id(1)
    draw = draws + row * 16
    if tl.load(draw) < 0:
        return
    flags = tl.load(draw + 1)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    row_peaks = peaks + row.to(tl.int64) * PEAK_STRIDE
    row_words = words + row.to(tl.int64) * WORD_STRIDE
    if flags & FLAG_LOGPROBS:
        inside = tokens < VOCABULARY
        raw = tl.load(logits + row.to(tl.int64) * LOGIT_STRIDE + tokens, mask=inside, other=float("-inf"))
        wrong = tl.max((raw != raw).to(tl.int32), 0)
        tl.store(row_peaks + RAW_PEAKS + chunk, tl.where(wrong == 1, float("inf"), tl.max(raw, 0)))
        left = inside & (raw == raw)
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
    BEGIN
    chunk = tl.program_id(0)
    row = tl.program_id(1)
    draw = draws + row * 16
    if tl.load(draw) < 0:
        return
    flags = tl.load(draw + 1)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    row_sums = sums + row.to(tl.int64) * SUM_STRIDE
    if flags & FLAG_LOGPROBS:
        inside = tokens < VOCABULARY
        raw = tl.load(logits + row.to(tl.int64) * LOGIT_STRIDE + tokens, mask=inside, other=float("-inf"))
        depth = peak_of(peaks, row, RAW_PEAKS).to(tl.float64) - raw.to(tl.float64)
        known = inside & (depth < DEEPEST)
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
            least = tl.ceil(number(draw, 5).to(tl.float64) * UNIT_FLOAT).to(tl.int64)
            weight = tl.where(weight >= least, weight, 0)
        tl.store(row_sums + chunk, tl.sum(weight, 0))
"""

PLAN_KERNEL = """@triton.jit
def draw_plan(draws, words, sums):
    # grid: L
    BEGIN
    row = tl.program_id(0)
    draw = draws + row * 16
    if tl.load(draw) < 0:
        return
    if (tl.load(draw + 1) & FLAG_GREEDY) != 0:
        return
    if not filters(draw):
        return
    row_words = words + row.to(tl.int64) * WORD_STRIDE
    chunks = tl.arange(0, CHUNKS_PADDED)
    levels = tl.arange(0, LEVELS)
    at = row_words + COUNTS + chunks[:, None] * LEVELS + levels[None, :]
    counted = tl.load(at, mask=(chunks < CHUNKS)[:, None] & (levels >= 0)[None, :], other=0)
    by_level = tl.sum(counted, 0)
    top_k = tl.load(draw + 3)
    if (top_k > 0) & (top_k < VOCABULARY):
        short = tl.cumsum(by_level, 0) < top_k
    else:
        all_sums = tl.load(sums + row.to(tl.int64) * SUM_STRIDE + chunks, mask=chunks < CHUNKS, other=0)
        total = tl.sum(all_sums, 0)
        spare = (total - part(total, number(draw, 4).to(tl.float64))).to(tl.float64)
        # No token weighs more than the first of its level, so this is never less than what lies below a level.
        most = by_level.to(tl.float64) * (power(levels.to(tl.float64) / LEVELS_PER_UNIT) * UNIT_FLOAT + 1.0)
        below = tl.sum(tl.where(levels[:, None] < levels[None, :], most[None, :], 0.0), 1)
        short = below * 1.000001 > spare
    last = tl.minimum(tl.sum(short.to(tl.int32), 0), LEVELS - 1)
    kept = tl.sum(tl.where(levels[None, :] <= last, counted, 0), 1)
    tl.store(row_words + ENDS + chunks, tl.cumsum(kept, 0))
    tl.store(row_words + LAST_LEVEL, last)
    tl.store(row_words + LIVE, tl.sum(by_level, 0))
"""

LIST_KERNEL = """@triton.jit
def draw_list(logits, draws, counts, bias, bitmask, peaks, words, lists):
    # grid: CHUNKS, L
    BEGIN
    chunk = tl.program_id(0)
    row = tl.program_id(1)
    draw = draws + row * 16
    if tl.load(draw) < 0:
        return
    if (tl.load(draw + 1) & FLAG_GREEDY) != 0:
        return
    if not filters(draw):
        return
    row_words = words + row.to(tl.int64) * WORD_STRIDE
    if (row >= LISTS) | (tl.load(row_words + ENDS + CHUNKS - 1) > LIST_LENGTH):
        return
    end = tl.load(row_words + ENDS + chunk)
    x = scores(logits, draw, counts, bias, bitmask, row, chunk)
    depth = depths(x, draw, peak_of(peaks, row, 0))
    weight = weights(depth)
    kept = ((weight > 0) & ((depth * LEVELS_PER_UNIT).to(tl.int32) <= tl.load(row_words + LAST_LEVEL))).to(tl.int32)
    at = end - tl.sum(kept, 0) + tl.cumsum(kept, 0) - 1
    tl.store(lists + row.to(tl.int64) * LIST_LENGTH + at, weight, mask=kept == 1)
"""

FINISH_KERNEL = """@triton.jit
def draw_token(logits, draws, counts, bias, bitmask, peaks, words, sums, lists, feedback, ids, logprobs):
    # grid: L
    BEGIN
    row = tl.program_id(0)
    draw = draws + row * 16
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
            least = tl.ceil(number(draw, 5).to(tl.float64) * UNIT_FLOAT).to(tl.int64)
            by_chunk = tl.load(row_sums + chunks, mask=chunks < CHUNKS, other=0)
            total = tl.sum(by_chunk, 0)
            # Tokens above `border` are kept, and the first `ties` of those at it.
            border = tl.full((), 0, tl.int64)
            ties = tl.full((), 0, tl.int64)
            filtered = filters(draw)
            chunk = tl.full((), 0, tl.int32)
            place = tl.full((), 0, tl.int32)
            begin = tl.full((), 0, tl.int64)
            last_level = tl.full((), LEVELS, tl.int32)
            listed = False
            if filtered:
                length = tl.load(row_words + ENDS + CHUNKS - 1)
                listed = (row < LISTS) & (length <= LIST_LENGTH)
                tiles = tl.where(listed, tl.cdiv(length, CHUNK), CHUNKS)
                top_k = tl.load(draw + 3).to(tl.int64)
                top_p = number(draw, 4).to(tl.float64)
                kept = tl.full((), NOBODY, tl.int64)
                for filter in range(3):
                    wanted = part(total, top_p)
                    low_end = tl.maximum(border, 1)
                    high_end = tl.full((), UNIT + 1, tl.int64)
                    if filter == 0:
                        active = (top_k > 0) & (top_k < tl.load(row_words + LIVE))
                    elif filter == 1:
                        active = top_p < 1.0
                    else:
                        active = least > border
                        low_end = least - 1
                        high_end = least + 1
                    if active:
                        # Halves what is left of [low_end, high_end) until one weight is there, which the border is.
                        low_count = kept
                        high_count = tl.full((), 0, tl.int64)
                        above = tl.full((), 0, tl.int64)
                        next = tl.full((), UNIT, tl.int64)
                        while (high_end - low_end > 1) & (low_count - high_count > 1):
                            middle = (low_end + high_end) >> 1
                            count = tl.full((), 0, tl.int64)
                            reached = tl.full((), 0, tl.int64)
                            under = tl.full((), 0, tl.int64)
                            for index in range(tiles):
                                weight = tile_of(
                                    logits, draw, counts, bias, bitmask, lists, row, peak, listed, length, index
                                )
                                heavy = weight >= middle
                                count += tl.sum(heavy.to(tl.int32), 0)
                                reached += tl.sum(tl.where(heavy, weight, 0), 0)
                                under = tl.maximum(under, tl.max(tl.where(heavy, 0, weight), 0))
                            enough = ((filter == 0) & (count >= top_k)) | ((filter == 1) & (reached >= wanted))
                            low_end = tl.where(enough, middle, low_end)
                            low_count = tl.where(enough, count, low_count)
                            high_end = tl.where(enough, high_end, middle)
                            high_count = tl.where(enough, high_count, count)
                            above = tl.where(enough, above, reached)
                            next = tl.where(enough, next, under)
                        if filter == 0:
                            border = next
                            ties = top_k - high_count
                            kept = top_k
                        elif filter == 1:
                            needed = (wanted - above + next - 1) // tl.maximum(next, 1)
                            ties = tl.where(next == border, tl.minimum(needed, ties), needed)
                            border = next
                        else:
                            ties = tl.full((), 0, tl.int64)
                            border = least - 1
                        total = above + ties * border
                point = tl.minimum((total.to(tl.float64) * uniform).to(tl.int64), total - 1)
                before = tl.full((), 0, tl.int64)
                seen = tl.full((), 0, tl.int64)
                for index in range(tiles):
                    weight = tile_of(logits, draw, counts, bias, bitmask, lists, row, peak, listed, length, index)
                    tied = (weight == border) & (weight > 0)
                    first = tied & (seen + tl.cumsum(tied.to(tl.int32), 0) <= ties)
                    weight = tl.where((weight > border) | first, weight, 0)
                    place += tl.sum((before + tl.cumsum(weight, 0) <= point).to(tl.int32), 0)
                    before += tl.sum(weight, 0)
                    seen += tl.sum(tied.to(tl.int32), 0)
                token = place
                if listed:
                    ends = tl.load(row_words + ENDS + chunks, mask=chunks < CHUNKS, other=NOBODY)
                    chunk = tl.sum((ends <= place).to(tl.int32), 0)
                    begin = tl.max(tl.where(ends <= place, ends, 0), 0).to(tl.int64)
                    last_level = tl.load(row_words + LAST_LEVEL)
            else:
                point = tl.minimum((total.to(tl.float64) * uniform).to(tl.int64), total - 1)
                past = (tl.cumsum(by_chunk, 0) <= point) & (chunks < CHUNKS)
                chunk = tl.sum(past.to(tl.int32), 0)
                begin = tl.sum(tl.where(past, by_chunk, 0), 0)
            if listed | (not filtered):
                # Which token of the chunk it is: the one that is so far along the list, or at which the sum is reached.
                depth = depths(scores(logits, draw, counts, bias, bitmask, row, chunk), draw, peak)
                weight = weights(depth)
                live = (weight > 0) & ((depth * LEVELS_PER_UNIT).to(tl.int32) <= last_level)
                step = tl.where(listed, live.to(tl.int64), tl.where(weight >= least, weight, 0))
                goal = tl.where(listed, place.to(tl.int64), point)
                token = chunk * CHUNK + tl.sum((begin + tl.cumsum(step, 0) <= goal).to(tl.int32), 0)
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
            raw_sums = tl.load(row_sums + RAW_SUMS + chunks, mask=chunks < CHUNKS, other=0)
            share = tl.sum(raw_sums, 0).to(tl.float64) / UNIT_FLOAT
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
