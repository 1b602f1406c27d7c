"""Attention of one new token per sequence over preallocated keys and values: the inner loop of generation.

A Triton kernel on CUDA, which reads every key and value once at memory speed (one program per sequence and KV head; its two
query heads share the read), and the same arithmetic in PyTorch elsewhere. The order of the slots does not matter, so a
sliding layer keeps its window as a ring.
"""
import torch
from shape import *

try: import triton, triton.language as tl
except ImportError: triton = None

assert HQ == 2 * HK and DQ == 192 and DV == 128, "the kernel below is written for these head sizes"

if triton:
    @triton.jit(do_not_specialize=["count"])
    def decode_kernel(q, k, v, sink, out, count, capacity, scale, HAS_SINK: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_KEYS: tl.constexpr):
        """q [B, 2 HK, 192], k [B, HK, capacity, 192], v [B, HK, capacity, 128], sink [2 HK], out [B, 2 HK, 128]; slots 0..count-1 are read."""
        b = tl.program_id(0).to(tl.int64); h = tl.program_id(1)
        lo = tl.arange(0, 128); hi = 128 + tl.arange(0, 64)             # 192 = 128 + 64: sizes of a tile are powers of two
        row = (b * KV_HEADS + h) * 2
        q0l = tl.load(q + row * 192 + lo).to(tl.float32) * scale; q0h = tl.load(q + row * 192 + hi).to(tl.float32) * scale
        q1l = tl.load(q + row * 192 + 192 + lo).to(tl.float32) * scale; q1h = tl.load(q + row * 192 + 192 + hi).to(tl.float32) * scale
        if HAS_SINK:
            m0 = tl.load(sink + h * 2).to(tl.float32); m1 = tl.load(sink + h * 2 + 1).to(tl.float32); z0 = m0 * 0 + 1.0; z1 = m1 * 0 + 1.0
        else:
            m0 = tl.full((), -1e30, tl.float32); m1 = tl.full((), -1e30, tl.float32); z0 = tl.full((), 0.0, tl.float32); z1 = tl.full((), 0.0, tl.float32)
        a0 = tl.zeros((128,), tl.float32); a1 = tl.zeros((128,), tl.float32)
        first = (b * KV_HEADS + h) * capacity
        for start in range(0, count, BLOCK_KEYS):
            j = start + tl.arange(0, BLOCK_KEYS); ok = j < count; at = (first + j)[:, None]
            kl = tl.load(k + at * 192 + lo[None, :], mask=ok[:, None], other=0.0).to(tl.float32)
            kh = tl.load(k + at * 192 + hi[None, :], mask=ok[:, None], other=0.0).to(tl.float32)
            vv = tl.load(v + at * 128 + lo[None, :], mask=ok[:, None], other=0.0).to(tl.float32)
            s0 = tl.where(ok, tl.sum(kl * q0l[None, :], 1) + tl.sum(kh * q0h[None, :], 1), -1e30)
            s1 = tl.where(ok, tl.sum(kl * q1l[None, :], 1) + tl.sum(kh * q1h[None, :], 1), -1e30)
            n0 = tl.maximum(m0, tl.max(s0, 0)); n1 = tl.maximum(m1, tl.max(s1, 0))
            p0 = tl.exp(s0 - n0); p1 = tl.exp(s1 - n1); r0 = tl.exp(m0 - n0); r1 = tl.exp(m1 - n1)
            z0 = z0 * r0 + tl.sum(p0, 0); z1 = z1 * r1 + tl.sum(p1, 0)
            a0 = a0 * r0 + tl.sum(p0[:, None] * vv, 0); a1 = a1 * r1 + tl.sum(p1[:, None] * vv, 0)
            m0 = n0; m1 = n1
        tl.store(out + row * 128 + lo, (a0 / z0).to(tl.bfloat16)); tl.store(out + row * 128 + 128 + lo, (a1 / z1).to(tl.bfloat16))


def by_kernel(q, k, v, sink, count):
    out = torch.empty(len(q), HQ, DV, dtype=torch.bfloat16, device=q.device)
    decode_kernel[(len(q), HK)](q, k, v, q if sink is None else sink.detach(), out, count, k.shape[2], DQ ** -0.5, sink is not None, HK, 32, num_warps=4)
    return out


def by_torch(q, k, v, sink, count):
    s = torch.matmul(q.view(-1, HK, HQ // HK, DQ), k[:, :, :count].transpose(-1, -2)).float() * DQ ** -0.5
    if sink is not None: s = torch.cat([s, sink.float().view(1, HK, -1, 1).expand(len(q), -1, -1, 1)], -1)
    return torch.matmul(s.softmax(-1)[..., :count].to(k.dtype), v[:, :, :count]).reshape(-1, HQ, DV)


use_kernel = True


def decode_attention(q, k, v, sink, count):
    """q [B,HQ,DQ], k [B,HK,capacity,DQ], v [B,HK,capacity,DV], sink [HQ] or None, all contiguous -> [B,HQ,DV] over slots 0..count-1."""
    global use_kernel
    if triton and use_kernel and q.is_cuda:
        try: return by_kernel(q.contiguous(), k, v, sink, count)
        except Exception as e: use_kernel = False; print(f"decode kernel not usable ({type(e).__name__}: {str(e)[:300]}); PyTorch instead", flush=True)
    return by_torch(q, k, v, sink, count)
