"""From the syntax tree of functions to an LLVM module."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from .expressions import Expressions
from .values import BOOL, DOUBLE, INT, SINGLE, VOID, Pointer, Value, convert, llvm_type

Function = Callable[..., Any]


class Unit:
    """A module under construction: some functions, and whatever they call.

    Args:
        single: the state's dtype is single precision.
        loose: sums may be reordered, and multiplied and added in one operation: as fast as the machine can, and still
            the same from run to run.
    """

    def __init__(self, *, single: bool, loose: bool = False):
        self.real = SINGLE if single else DOUBLE
        self.flags = ("contract",) if loose else ()
        self.sum_flags = ("contract", "reassoc") if loose else ()
        self.module = ir.Module()
        self._done: dict[int, tuple[Any, Any, list[Any]]] = {}
        self._keep: list[Any] = []

    def types(self, annotation: Any) -> Any:
        """The type that an annotation stands for."""
        kinds = {
            "int": INT, "float": DOUBLE, "bool": BOOL, "Real": self.real, "None": VOID,
            "Ints": Pointer(INT), "Wide": Pointer(DOUBLE), "Reals": Pointer(self.real),
        }  # fmt: skip
        return kinds[ast.unparse(annotation).strip("'\"")]

    def function(self, source: Function, *, export: bool = False) -> tuple[Any, Any, list[Any]]:
        """The LLVM function of a Python function, what it returns, and what it takes."""
        if id(source) not in self._done:
            tree = ast.parse(textwrap.dedent(inspect.getsource(source))).body[0]
            assert isinstance(tree, ast.FunctionDef)
            self._keep.append(source)
            self.define(tree, source.__globals__, key=id(source), export=export)
            if getattr(source, "apart", False) and not export:
                self._done[id(source)][0].attributes.add("noinline")
        return self._done[id(source)]

    def entry(self, source: Function) -> None:
        """A function to call from Python, by the name of ``source``: it takes all arguments in one array of integers.

        Those are numbers, and addresses of what does not overlap. (To hand over twenty of them one by one takes
        ``ctypes`` two microseconds.)
        """
        llvm, returns, takes = self.function(source)
        array = ir.PointerType(INT)
        outer = ir.Function(self.module, ir.FunctionType(llvm_type(returns), [array]), name=source.__name__)
        b = ir.IRBuilder(outer.append_basic_block("entry"))
        given = []
        for i, (argument, kind) in enumerate(zip(llvm.args, takes, strict=True)):
            word = b.load(b.gep(outer.args[0], [ir.Constant(INT, i)], source_etype=INT), typ=INT)
            if isinstance(kind, Pointer):
                argument.add_attribute("noalias")
                word = b.inttoptr(word, llvm_type(kind))
            given.append(word)
        b.ret(b.call(llvm, given))

    def define(self, tree: ast.FunctionDef, names: dict[str, Any], *, key: int, export: bool) -> None:
        """Add the function of a syntax tree, whose free names are looked up in ``names``."""
        takes = [self.types(a.annotation) for a in tree.args.args]
        returns = VOID if tree.returns is None else self.types(tree.returns)
        kind = ir.FunctionType(llvm_type(returns), [llvm_type(k) for k in takes])
        name = tree.name if export else f"{tree.name}.{len(self._done)}"
        llvm = ir.Function(self.module, kind, name=name)
        if not export:
            llvm.linkage = "internal"
            if names.get("__name__", "").endswith(".mathlib"):  # vectorising the loop around it needs its body
                llvm.attributes.add("alwaysinline")
        for given, k in zip(llvm.args, takes, strict=True):
            if isinstance(k, Pointer) and export:
                given.add_attribute("noalias")
        self._done[key] = (llvm, returns, takes)
        Body(self, llvm, returns, names).run(tree, takes)


class Body:
    """Translates the statements of one function."""

    def __init__(self, unit: Unit, llvm: Any, returns: Any, names: dict[str, Any]):
        self.unit, self.llvm, self.returns = unit, llvm, returns
        entry = llvm.append_basic_block("entry")
        self.allocas = ir.IRBuilder(entry)
        self.b = ir.IRBuilder(llvm.append_basic_block("body"))
        self.slots: dict[str, tuple[Any, Any]] = {}
        self.loops: list[tuple[Any, Any]] = []
        self.expressions = Expressions(unit, self.b, self.slots, names)

    def run(self, tree: ast.FunctionDef, takes: Sequence[Any]) -> None:
        for argument, value, kind in zip(tree.args.args, self.llvm.args, takes, strict=True):
            self._set(argument.arg, Value(value, kind))
        for statement in tree.body:
            self.statement(statement)
        if not self.b.block.is_terminated:
            if self.returns == VOID:
                self.b.ret_void()
            else:
                self.b.unreachable()
        self.allocas.branch(self.llvm.blocks[1])

    def _set(self, name: str, value: Value) -> None:
        if name not in self.slots:
            self.slots[name] = (self.allocas.alloca(llvm_type(value.type), name=name), value.type)
        slot, kind = self.slots[name]
        self.b.store(convert(self.b, value, kind), slot)

    def statement(self, s: ast.stmt) -> None:
        if self.b.block.is_terminated:
            return
        getattr(self, f"_{type(s).__name__}")(s)

    def _Expr(self, s: ast.Expr) -> None:
        if not isinstance(s.value, ast.Constant):
            self.expressions(s.value)

    def _Pass(self, s: ast.Pass) -> None:
        pass

    def _Assign(self, s: ast.Assign) -> None:
        if isinstance(s.value, ast.Tuple):
            values = [self.expressions(v) for v in s.value.elts]
            targets = s.targets[0].elts if isinstance(s.targets[0], ast.Tuple) else []
            for target, value in zip(targets, values, strict=True):
                self._store(target, value)
            return
        value = self._sum(s) or self.expressions(s.value)
        for target in s.targets:
            self._store(target, value)

    def _sum(self, s: ast.Assign) -> Value | None:
        """``a = (a + b)`` is a running sum, as ``a += b`` is."""
        target, value = s.targets[0], s.value
        if not (isinstance(target, ast.Name) and isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add)):
            return None
        if not (isinstance(value.left, ast.Name) and value.left.id == target.id and target.id in self.slots):
            return None
        left, right = self.expressions(value.left), self.expressions(value.right)
        return self.expressions.operate(value.op, left, right, summed=True)

    def _AnnAssign(self, s: ast.AnnAssign) -> None:
        assert isinstance(s.target, ast.Name) and s.value is not None
        kind = self.unit.types(s.annotation)
        self._set(s.target.id, Value(convert(self.b, self.expressions(s.value), kind), kind))

    def _store(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self._set(target.id, value)
            return
        assert isinstance(target, ast.Subscript)
        place, element = self.expressions.place(target)
        self.b.store(convert(self.b, value, element), place)

    def _AugAssign(self, s: ast.AugAssign) -> None:
        summed = isinstance(s.target, ast.Name) and isinstance(s.op, ast.Add)
        if isinstance(s.target, ast.Name):
            value = self.expressions(s.value)
            old = self.expressions(ast.Name(s.target.id, ast.Load()))
            self._set(s.target.id, self.expressions.operate(s.op, old, value, summed=summed))
            return
        assert isinstance(s.target, ast.Subscript)
        place, element = self.expressions.place(s.target)
        old = Value(self.b.load(place, typ=element), element)
        value = self.expressions.operate(s.op, old, self.expressions(s.value))
        self.b.store(convert(self.b, value, element), place)

    def _For(self, s: ast.For) -> None:
        assert isinstance(s.target, ast.Name) and isinstance(s.iter, ast.Call)
        limits = [self.expressions(a) for a in s.iter.args]
        start = limits[0] if len(limits) > 1 else Value(ir.Constant(INT, 0), INT)
        stop = limits[1 if len(limits) > 1 else 0]
        step = 1 if len(limits) < 3 else self.expressions.constant(s.iter.args[2])
        counter = self.allocas.alloca(INT)
        self.b.store(start.llvm, counter)
        head, body, after, end = (self.llvm.append_basic_block(n) for n in ("for", "do", "next", "end"))
        self.b.branch(head)
        self.b.position_at_end(head)
        at = self.b.load(counter, typ=INT)
        self.b.cbranch(self.b.icmp_signed("<" if step > 0 else ">", at, stop.llvm), body, end)
        self.b.position_at_end(body)
        self._set(s.target.id, Value(at, INT))
        self._block(s.body, after, end)
        self.b.position_at_end(after)
        counted = self.b.add(self.b.load(counter, typ=INT), ir.Constant(INT, step), flags=("nsw",))
        self.b.store(counted, counter)
        self.b.branch(head)
        self.b.position_at_end(end)

    def _While(self, s: ast.While) -> None:
        head, body, end = (self.llvm.append_basic_block(n) for n in ("while", "do", "end"))
        self.b.branch(head)
        self.b.position_at_end(head)
        self.b.cbranch(self.expressions.truth(s.test), body, end)
        self.b.position_at_end(body)
        self._block(s.body, head, end)
        self.b.position_at_end(end)

    def _block(self, statements: Sequence[ast.stmt], after: Any, end: Any) -> None:
        self.loops.append((after, end))
        for statement in statements:
            self.statement(statement)
        self.loops.pop()
        if not self.b.block.is_terminated:
            self.b.branch(after)

    def _Break(self, s: ast.Break) -> None:
        self.b.branch(self.loops[-1][1])

    def _Continue(self, s: ast.Continue) -> None:
        self.b.branch(self.loops[-1][0])

    def _If(self, s: ast.If) -> None:
        known = self.expressions.known(s.test)
        if known is not None:
            for statement in s.body if known else s.orelse:
                self.statement(statement)
            return
        yes, no, end = (self.llvm.append_basic_block(n) for n in ("then", "else", "fi"))
        self.b.cbranch(self.expressions.truth(s.test), yes, no)
        for block, statements in ((yes, s.body), (no, s.orelse)):
            self.b.position_at_end(block)
            for statement in statements:
                self.statement(statement)
            if not self.b.block.is_terminated:
                self.b.branch(end)
        self.b.position_at_end(end)

    def _Return(self, s: ast.Return) -> None:
        if s.value is None:
            self.b.ret_void()
        else:
            self.b.ret(convert(self.b, self.expressions(s.value), self.returns))
