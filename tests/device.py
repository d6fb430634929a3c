"A device that is not the CPU where there is none: tensors on `meta`, each with its numbers in memory beside it"
import sys
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
_indexing = aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default   # they take indices on the CPU
_between = aten._to_copy.default, aten.copy_.default
_waiting = aten._local_scalar_dense.default, aten.nonzero.default, *_between

def _on(t): return t.device.type == 'meta'

class Device(TorchDispatchMode):
    "Computes what is on `meta` with numbers; RuntimeError where tensors of two devices meet, TypeError for 64 bits, which MPS has not; `waits` counts copies between it and the CPU"
    def __init__(self): super().__init__(); self.numbers,self.waits = {},0

    def _memory(self, t):
        ref,memory = self.numbers.get(t.untyped_storage()._cdata, (None, None))
        if not ref or ref.expired(): raise RuntimeError('a tensor that came here unseen: was a list used as an index? Each time it would be copied to a GPU')
        return torch.empty(0, dtype=t.dtype).set_(memory, t.storage_offset(), t.size(), t.stride())

    def _put(self, r, known):
        if r.dtype == torch.float64: raise TypeError('no 64 bits on this device')
        memory = r.untyped_storage()
        if memory._cdata not in known:
            s = known[memory._cdata] = torch.UntypedStorage(memory.nbytes(), device='meta')
            self.numbers[s._cdata] = StorageWeakRef(s),memory
            if len(self.numbers) % 2000 == 0: self.numbers = {k: v for k,v in self.numbers.items() if not v[0].expired()}
        return torch.empty(0, dtype=r.dtype, device='meta').set_(known[memory._cdata], r.storage_offset(), r.size(), r.stride())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ts,device = [o for o in tree_leaves((args, kwargs)) if isinstance(o, Tensor)],kwargs.get('device')
        device = device and torch.device(device).type
        here = [t for t in ts if _on(t)]
        if not here and device != 'meta': return func(*args, **kwargs)
        there = [t for t in ts if t.ndim and not _on(t)]
        if here and there and func not in _between and (func not in _indexing or not _on(args[0])): raise RuntimeError(f'{func}: tensors of two devices')
        self.waits += func in _waiting and (func not in _between or len({t.device.type for t in ts} | {device} - {None}) > 1)
        known = {}
        def memory(t):
            if not _on(t): return t
            r = self._memory(t)
            known[r.untyped_storage()._cdata] = t.untyped_storage()
            return r
        a,k = tree_map_only(Tensor, memory, (args, kwargs))
        res = func(*a, **({**k, 'device': 'cpu'} if device else k))
        if device == 'cpu' or not isinstance(res, (Tensor, tuple, list)): return res
        given = {id(r): o for r,o in zip(tree_leaves((a, k)), tree_leaves((args, kwargs))) if isinstance(o, Tensor)}   # what is changed in place
        for r,o in ((r, given[id(r)]) for r in tree_leaves((a, k)) if id(r) in given):
            if r.shape != o.shape: o.as_strided_(r.size(), r.stride(), r.storage_offset())
        return tree_map_only(Tensor, lambda t: given[id(t)] if id(t) in given else self._put(t, known), res)

class _Made(TorchFunctionMode):
    "Tensors of lists come from the CPU"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.tensor and str(kwargs.get('device')) == 'meta': return func(*args, **{**kwargs, 'device': 'cpu'}).to('meta')
        return func(*args, **kwargs)

def fused_on(monkeypatch):
    "Let PyTorch's fused optimisers work on it"
    for m in [m for n,m in list(sys.modules.items()) if n.startswith('torch.') and hasattr(m, '_get_fused_kernels_supported_devices')]:
        monkeypatch.setattr(m, '_get_fused_kernels_supported_devices', lambda: ['cpu', 'meta'])

@contextmanager
def device():
    "The device inside the block"
    with Device() as d, _Made(): yield d

def gpus(monkeypatch, *devices):
    "Let `torch.cuda` have `devices`, as ('cpu', 'meta'), in place of GPUs; a process begins with the first one, as on a machine"
    current = [0]
    def choose(d): current[0] = d if isinstance(d, int) else torch.device(d).index
    fakes = dict(is_available=lambda: True, device_count=lambda: len(devices), current_device=lambda: torch.device(devices[current[0]]), set_device=choose, manual_seed_all=lambda seed: None)
    for name,f in fakes.items(): monkeypatch.setattr(torch.cuda, name, f)
    monkeypatch.setattr(Tensor, 'pin_memory', lambda self: self)
