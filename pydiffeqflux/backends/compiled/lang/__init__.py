"""A small compiler: functions in a few words of Python, to machine code by LLVM.

Numba was measured first (0.68, this project's machine, one core): 5.5 s to compile the explicit loop for one dtype,
half of it in inferring types that these functions state anyway. The same functions take about a tenth of that here.
``llvmlite``, Numba's own binding of LLVM, does all the work on the machine's side.

The language is Python's syntax with C's meaning. Types are stated: ``int`` (64 bits), ``float`` (double precision),
``Real`` (the state's dtype, in which a function is compiled), ``bool``, and flat arrays of the first three, ``Ints``,
``Wide`` and ``Reals``, which are pointers: ``a[i:]`` is the array from i on, and nothing knows its length. A variable
has the type of what is first assigned to it. Besides assignments there are ``for i in range(...)``, ``while``, ``if``,
``break``, ``continue`` and ``return``; besides arithmetic ``min``, ``max``, ``abs``, the functions of ``math`` and of
``words``, and other functions of the language. Names of a module that stand for numbers are constants.
"""
