"""Matrix products in the compiled language: which loop runs inside, by where the numbers lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...graph.expr import Index, Number, linear
from ...graph.printer import Printer
from ...graph.program import Buffer, Matrix, Product
from . import blas

#: Multiplications in a product from which on the BLAS library is faster: measured on layers of 16 to 256, 1 to 128
#: rows, of which it won from 131,000 on in f and from 262,000 on in its products.
WANTS_BLAS = 200_000
#: Rows of the left matrix from which on the right one is turned around.
TURNED = 8
#: Columns up to which all of them are summed up together.
NARROW = 4
#: Terms from which on a sum is worth a vector.
LONG = 8

_B, _I, _K, _J = (Index(x) for x in ("b", "i_", "k", "j"))


def wants_blas(s: Product) -> bool:
    """Whether a product is large enough for the library."""
    return s.rows * s.inner * s.columns >= WANTS_BLAS and min(s.rows, s.columns) >= NARROW


class Products(Printer):
    """Prints products. Measured on 20 rows with layers 2-50-2 and back, the narrow ones take a fifth of plain loops."""

    #: How many numbers the program needs to work in, with what the printer adds.
    workspace: int = 0

    def product(self, s: Product) -> None:
        """Along the columns of the right matrix where they lie next to each other; sums side by side elsewhere.

        A right matrix that lies the other way (a layer's weight) is first turned around where there are rows enough to
        make that worth it: measured on 128 rows and 16 to 32 columns, 5 times as fast as inner products that short.
        """
        if wants_blas(s) and self._by_blas(s):
            return
        wide = s.columns >= NARROW
        if s.right.column != 1 and s.rows >= TURNED and wide and s.inner >= 4:
            s = self._turned(s)
        if s.right.column == 1 and wide:
            self._along_rows(s)
        elif s.columns < NARROW and s.left.row == 1 and s.left.column != 1 and s.rows >= TURNED and s.batch == 1:
            self._swapped(s)
        elif s.inner >= LONG:
            self._sums(s)
        else:
            super().product(s)

    def _by_blas(self, s: Product) -> bool:
        """By the BLAS library, if there is one and it takes matrices that lie like these; it counts columns first."""
        right, left = _leading(s.right, s.inner, s.columns), _leading(s.left, s.rows, s.inner)
        if right is None or left is None or blas.addresses() is None:
            return False
        with self.nest(self._batches(s)):
            zero = Index("0")
            a, b = (self._entry(m, _B, zero, zero) for m in (s.right, s.left))
            c = self.element(s.into, self._out(s, zero, zero))
            sizes = f"{right[0]}, {left[0]}, {s.columns}, {s.rows}, {s.inner}"
            a, b, c = (f"{x[:-1]}:]" for x in (a, b, c))
            self.line(f"gemm({sizes}, {a}, {right[1]}, {b}, {left[1]}, {c}, {s.columns})")
        return True

    def _along_rows(self, s: Product) -> None:
        """Four rows of the right matrix at a time: a quarter of the traffic of one."""
        into, rows = self.element(s.into, self._out(s, _I, _J)), s.inner // 4 * 4
        few = 0 < s.inner < 4
        with self.nest([*self._batches(s), (_I, s.rows)]):
            if few:  # all of them
                self._add(s, into, [Index(str(k)) for k in range(s.inner)], "=")
                return
            with self.nest([(_J, s.columns)]):
                self.line(f"{into} = {self.literal(Number(0.0, 'float'))}")
            with self.block(f"for k in range(0, {rows}, 4):"):
                self._add(s, into, [Index(f"(k + {d})") for d in range(4)], "+=")
            if rows < s.inner:
                with self.block(f"for k in range({rows}, {s.inner}):"):
                    self._add(s, into, [_K], "+=")

    def _add(self, s: Product, into: str, at: Sequence[Index], how: str) -> None:
        """These rows of the right matrix, weighted."""
        for d, k in enumerate(at):
            self.line(f"a{d} = {self._entry(s.left, _B, _I, k)}")
        with self.nest([(_J, s.columns)]):
            terms = (f"a{d} * {self._entry(s.right, _B, k, _J)}" for d, k in enumerate(at))
            self.line(f"{into} {how} {' + '.join(terms)}")

    def _sums(self, s: Product) -> None:
        """Inner products, several side by side: they share what they read, and do not wait for each other."""
        wide = min(s.columns, NARROW)
        tall = min(s.rows, max(1, NARROW // wide))
        with self.nest(self._batches(s)):
            for rows, r in _spans(s.rows, tall):
                with self.block(f"for i_ in range({rows.start}, {rows.stop}, {r}):"):
                    for columns, c in _spans(s.columns, wide):
                        with self.block(f"for j in range({columns.start}, {columns.stop}, {c}):"):
                            self._sums_of(s, r, c)

    def _sums_of(self, s: Product, rows: int, columns: int) -> None:
        at_i = [Index(f"(i_ + {d})") for d in range(rows)]
        at_j = [Index(f"(j + {d})") for d in range(columns)]
        cells = [(i, j) for i in range(rows) for j in range(columns)]
        for i, j in cells:
            self.line(f"s{i}{j} = {self.literal(Number(0.0, 'float'))}")
        with self.nest([(_K, s.inner)]):
            for i, row in enumerate(at_i):
                self.line(f"l{i} = {self._entry(s.left, _B, row, _K)}")
            for j, column in enumerate(at_j):
                self.line(f"r{j} = {self._entry(s.right, _B, _K, column)}")
            for i, j in cells:
                self.line(f"s{i}{j} += l{i} * r{j}")
        for i, j in cells:
            self.line(f"{self.element(s.into, self._out(s, at_i[i], at_j[j]))} = s{i}{j}")

    def _swapped(self, s: Product) -> None:
        """The transpose, along the columns of the left matrix, which lie next to each other; then turned around."""
        copy = self._room(s.rows * s.columns)
        left = replace(s.right, row=s.right.column, column=s.right.row)
        right = replace(s.left, row=s.left.column, column=s.left.row)
        self._along_rows(Product(copy, left, right, 1, s.columns, s.inner, s.rows))
        with self.nest([(_I, s.rows), (_J, s.columns)]):
            there = self.element(copy, self.expr(linear(0, (s.rows, 1), (_J, _I))))
            self.line(f"{self.element(s.into, self._out(s, _I, _J))} = {there}")

    def _turned(self, s: Product) -> Product:
        """The same product with a copy of the right matrix, row by row; a batch of one matrix is copied once."""
        size, batch = s.inner * s.columns, s.batch if s.right.batch else 1
        copy = self._room(batch * size)
        at = linear(0, (size, s.columns, 1), (_B if batch > 1 else Number(0, "int"), _K, _J))
        with self.nest([*([(_B, batch)] if batch > 1 else []), (_K, s.inner), (_J, s.columns)]):
            self.line(f"{self.element(copy, self.expr(at))} = {self._entry(s.right, _B, _K, _J)}")
        return replace(s, right=Matrix(copy, 0, size if batch > 1 else 0, s.columns, 1))

    def _room(self, size: int) -> Buffer:
        """Room to work in, behind what the program itself needs; free again after the statement."""
        copy = Buffer("work", "w", size, self.program.workspace)
        self.workspace = max(self.workspace, copy.offset + copy.size)
        return copy

    def _batches(self, s: Product) -> list[tuple[Index, int]]:
        return [(_B, s.batch)] if s.batch > 1 else []

    def _out(self, s: Product, i: Index, j: Index) -> str:
        """Where in the result an entry lies."""
        batch = _B if s.batch > 1 else Number(0, "int")
        return self.expr(linear(0, (s.rows * s.columns, s.columns, 1), (batch, i, j)))


def _leading(m: Matrix, rows: int, columns: int) -> tuple[int, int] | None:
    """Whether a matrix lies column by column, and from one of its rows (or columns) to the next; None: neither."""
    if m.column == 1 and m.row >= columns:
        return 0, m.row
    return (1, m.column) if m.row == 1 and m.column >= rows else None


def _spans(n: int, step: int) -> list[tuple[range, int]]:
    """``range(n)`` in steps of so many, and what is left over one by one."""
    whole = n // step * step
    return [(span, by) for span, by in ((range(whole), step), (range(whole, n), 1)) if span]
