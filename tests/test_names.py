"The public names: types that are there, defaults of these types, a line of documentation"
import importlib, inspect, pkgutil, types, typing

import pytest

import caption_fastai

MODULES = sorted(m.name for m in pkgutil.iter_modules(caption_fastai.__path__) if not m.name.startswith('_'))

def public(name):
    "Functions, classes and their methods that the module exports, by name"
    module = importlib.import_module(f'caption_fastai.{name}')
    for n in getattr(module, '__all__', []):
        o = getattr(module, n)
        if not callable(o) or o.__module__ != module.__name__: continue
        yield n,o
        if inspect.isclass(o): yield from ((f'{n}.{k}', f) for k,f in vars(o).items() if inspect.isfunction(f) and (not k.startswith('_') or k == '__init__'))

def fits(value, hint):
    "Is `value` of this type, or is `hint` none that can be asked?"
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else [hint]
    kinds = [typing.get_origin(k) or k for k in kinds]
    return value is None or typing.Any in kinds or not all(isinstance(k, type) for k in kinds) or isinstance(value, tuple(kinds)) or float in kinds and type(value) is int

@pytest.mark.parametrize('module', MODULES)
def test_names(module):
    for name,o in public(module):
        assert '.' in name or (o.__doc__ or '').strip(), f'{name}: nothing says what it is'
        hints = typing.get_type_hints(o)   # NameError, where a type is not there
        for k,p in inspect.signature(o).parameters.items() if inspect.isfunction(o) else ():
            assert p.default is p.empty or repr(p.default) == '<factory>' or k not in hints or fits(p.default, hints[k]), f'{name}: {k}={p.default!r} is no {hints[k]}'

def test_fits():
    assert fits(1, float) and fits(None, int) and fits('a', int|str) and fits([1], list[int]) and fits(2, typing.Any)
    assert not fits('a', int) and not fits(1.5, int|str) and not fits((1,), list[int])
