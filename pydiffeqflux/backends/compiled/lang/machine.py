"""From an LLVM module to machine code, and into this process."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import llvmlite.binding as llvm


def target() -> Any:
    """This machine; whoever executes code owns the one that he made it with, so everybody gets one of his own."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return triple.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True)


@functools.cache
def machine_name() -> str:
    """What object code depends on besides its source."""
    features = llvm.get_host_cpu_features().flatten()
    return f"{llvm.llvm_version_info} {llvm.get_process_triple()} {llvm.get_host_cpu_name()} {features}"


def object_code(module: Any) -> bytes:
    """Optimised object code of a module."""
    parsed = llvm.parse_assembly(str(module))
    parsed.triple = llvm.get_process_triple()
    machine = target()
    parsed.data_layout = str(machine.target_data)
    parsed.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = tuning.slp_vectorization = True
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(parsed, builder)
    return machine.emit_object(parsed)


class Loaded:
    """Object code in this process: function addresses by name. Lives as long as somebody holds it."""

    def __init__(self, code: bytes, outside: Mapping[str, int] | None = None):
        for name, address in (outside or {}).items():  # what the code calls by name
            llvm.add_symbol(name, address)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target())
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        return int(self._engine.get_function_address(name))
