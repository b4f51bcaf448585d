"""A plain encoder of each coding of v3dpbd, from the description of the format."""

import numpy as np


def pack_8(voxels, choose):
    out, i, before = bytearray(), 0, 0
    while i < len(voxels):
        part = voxels[i : i + 1 + choose(95)].tolist()
        steps = np.diff([before, *part])
        if len(set(part)) == 1 and len(part) > 1:
            out += bytes([127 + len(part), part[0]])
        elif all(-1 <= s <= 2 for s in steps):
            out.append(32 + len(part))
            codes = [3 if s == -1 else int(s) for s in steps]
            for k in range(0, len(codes), 4):
                out.append(sum(c << 2 * n for n, c in enumerate(codes[k : k + 4])))
        else:
            part = part[:33]
            out += bytes([len(part) - 1, *part])
        i += len(part)
        before = part[-1]
    return bytes(out)


def pack_16(voxels, choose, order="<"):
    out, i, before = bytearray(), 0, 0
    while i < len(voxels):
        part = voxels[i : i + 1 + choose(33)].tolist()
        steps = np.diff([before, *part])
        if len(set(part)) == 1 and len(part) > 1:
            part = part[:33]
            out += bytes([222 + len(part)]) + np.array(part[:1], order + "u2").tobytes()
        elif all(-3 <= s <= 4 for s in steps):
            out.append(31 + len(part))
            bits = "".join(f"{s if s >= 0 else 4 - s:03b}" for s in steps.tolist())
            bits += "0" * (-len(bits) % 8)
            out += bytes(int(bits[k : k + 8], 2) for k in range(0, len(bits), 8))
        else:
            part = part[:32]
            out += bytes([len(part) - 1]) + np.array(part, order + "u2").tobytes()
        i += len(part)
        before = part[-1]
    return bytes(out)


PAIRS = [(0, 0), (0, -1), (-1, 0), (-1, 1), (0, 1), (1, 0), (1, -1), (1, 1)]


def low_bits(codes):
    number = sum(int(code) << 3 * n for n, code in enumerate(codes))
    return number.to_bytes(-(-3 * len(codes) // 8), "little")


def pack_3(levels, choose):
    out, i, before = bytearray(), 0, 0
    while i < len(levels):
        part = levels[i : i + 1 + choose(200)].tolist()
        even = part[: len(part) // 2 * 2]
        steps = np.diff([before, *even]).reshape(-1, 2).tolist()
        if len(set(part)) == 1 and len(part) > 1:
            more, fewer = divmod(len(part) - 1, 128)
            out += bytes([128 + fewer, part[0] << 5 | more])
        elif len(even) >= 4 and all(tuple(s) in PAIRS for s in steps):
            part = even
            out.append(22 + len(steps))
            out += low_bits([PAIRS.index(tuple(s)) for s in steps])
        else:
            part = part[:24]
            out.append(len(part) - 1)
            out += low_bits(part)
        i += len(part)
        before = part[-1]
    return bytes(out)
