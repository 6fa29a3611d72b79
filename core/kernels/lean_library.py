"""Loads compiled kernels without what only the compiler needs of them: a third of numba's time.

numba keeps a kernel as machine code, and as bitcode for other kernels that will be compiled with it
inlined.  When it loads one it parses that bitcode, to have it at hand and to see which symbols the
machine code defines.  A node compiles nothing: it loads a hundred kernels, and that was two thirds
of the time this took.  Here the names of the symbols are kept beside the code, and the bitcode is
parsed when somebody compiles.

It is a subclass at the one place where numba's code generator says of which class its libraries
are.  What it overrides is as in numba 0.60 to 0.69; another one loads kernels its own way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import llvmlite.binding as llvm
import numba
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen

FITS_FROM, FITS_BEFORE = (0, 60), (0, 70)  # versions of numba
LEAN = "lean object"  # a kind of serialised library beside numba's "object" and "bitcode"

Serialised = tuple[str, str, Any]


class LeanLibrary(JITCodeLibrary):  # type: ignore[misc]
    """A library of machine code whose bitcode is parsed at first need."""

    on_load: ClassVar[Callable[[str], None] | None] = None  # told the name of each that is loaded
    _bitcode: bytes | None = None

    def serialize_using_object_code(self) -> Serialised:
        """Return (name, kind, (machine code, bitcode, names of what they define))."""
        name, _, (code, bitcode) = super().serialize_using_object_code()
        module = self._get_module_for_linking()
        names = [
            one.name
            for symbols in (module.functions, module.global_variables)
            for one in symbols
            if not one.is_declaration
        ]
        return name, LEAN, (code, bitcode, names)

    @classmethod
    def _unserialize(cls, codegen: Any, state: Serialised) -> Any:
        name, kind, data = state
        if kind != LEAN:
            return super()._unserialize(codegen, state)
        if cls.on_load is not None:
            cls.on_load(name)
        library = codegen.create_library(name)
        code, library._bitcode, names = data
        library.enable_object_caching()
        library._set_compiled_object(code)
        library._finalize_final_module()
        codegen._engine._defined_symbols.update(names)
        return library

    def _get_module_for_linking(self) -> Any:
        if self._bitcode is not None:
            self._shared_module, self._bitcode = llvm.parse_bitcode(self._bitcode), None
        return super()._get_module_for_linking()


def install() -> None:
    """Have numba use it, before it makes its first library."""
    if FITS_FROM <= numba.version_info.short < FITS_BEFORE:
        JITCPUCodegen._library_class = LeanLibrary
