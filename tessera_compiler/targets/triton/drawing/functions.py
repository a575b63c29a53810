"""The functions that the kernels of `texts.py` call, as Triton source; each calls only those above it."""

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

FILTERED = '''@triton.jit
def filtered(draw):
    """Whether a token is drawn from what top_k or top_p leave."""
    return (tl.load(draw) >= 0) & ((tl.load(draw + 1) & FLAG_GREEDY) == 0) & filters(draw)
'''

LEAST = '''@triton.jit
def least_of(draw):
    """What a token has to weigh for min_p."""
    return tl.maximum(tl.ceil(number(draw, 5).to(tl.float64) * UNIT_FLOAT).to(tl.int64), 1)
'''

RAW = '''@triton.jit
def raw_of(logits, row, tokens):
    """The logits as the model gave them; past the last token -inf."""
    at = logits + row.to(tl.int64) * LOGIT_STRIDE + tokens
    return tl.load(at, mask=tokens < VOCABULARY, other=float("-inf"))
'''

SCORES = '''@triton.jit
def scores(logits, draw, counts, bias, bitmask, row, chunk):
    """The logits of a chunk's tokens with the draw's bitmask, biases and penalties; past the last token -inf."""
    seat = tl.load(draw).to(tl.int64)
    flags = tl.load(draw + 1)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = tokens < VOCABULARY
    x = raw_of(logits, row, tokens)
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

OVER_CHUNKS = '''@triton.jit
def over_chunks(row_values):
    """The sum of a whole number for each chunk."""
    chunks = tl.arange(0, CHUNKS_PADDED)
    return tl.sum(tl.load(row_values + chunks, mask=chunks < CHUNKS, other=0), 0)
'''

HEAVY = '''@triton.jit
def heavy_of(logits, draw, counts, bias, bitmask, row, chunk, peak):
    """What each of a chunk's tokens weighs."""
    return weights(depths(scores(logits, draw, counts, bias, bitmask, row, chunk), draw, peak))
'''

KEYS = '''@triton.jit
def keys_of(weight, chunk):
    """Whole numbers in the order in which filters keep a chunk's tokens: the heavier first, of equal ones the first. No
    two tokens have the same."""
    return (weight << TOKEN_BITS) | (LAST_TOKEN - (chunk * CHUNK + tl.arange(0, CHUNK)))
'''

TILE = '''@triton.jit
def tile_of(logits, draw, counts, bias, bitmask, row, index, peak, low, high, listed, held):
    """The keys of tokens that weigh at least `low` and less than `high`, and zeros: those of a row's list, or else of a
    chunk."""
    if listed:
        keys = held
    else:
        weight = heavy_of(logits, draw, counts, bias, bitmask, row, index, peak)
        keys = tl.where((weight >= low) & (weight < high), keys_of(weight, index), 0)
    return keys
'''

NARROWED = '''@triton.jit
def narrowed(draw, row_words, row_sums, low, high, shift):
    """The part of [low, high) in which the border is, by the tokens in each of its bins."""
    bins = tl.arange(0, BINS)
    counted = tl.load(row_words + FINE + bins).to(tl.int64)
    fewest = counted
    most = counted
    if (tl.load(row_words + ACTIVE) & ACTIVE_TOP_K) != 0:
        wanted = tl.load(draw + 3).to(tl.int64) - over_chunks(row_words + WIDE_COUNTS)
    else:
        wanted = part(over_chunks(row_sums), number(draw, 4).to(tl.float64)) - over_chunks(row_sums + WIDE_SUMS)
        fewest = counted * (low + (bins.to(tl.int64) << shift))
        most = fewest + (counted << shift)
    # From a bin on to the last.
    last = tl.sum((tl.sum(fewest, 0) - tl.cumsum(fewest, 0) + fewest >= wanted).to(tl.int32), 0) - 1
    first = tl.sum((tl.sum(most, 0) - tl.cumsum(most, 0) + most >= wanted).to(tl.int32), 0) - 1
    below = low + (tl.maximum(last, 0).to(tl.int64) << shift)
    return below, tl.minimum(low + ((first + 1).to(tl.int64) << shift), high)
'''
