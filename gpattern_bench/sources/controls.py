"""Names of control targets: the one list for all formats."""

from __future__ import annotations

__all__ = ["CONTROLS"]

CONTROLS = (
    "blank|notarget|neg(ative|[-_. ]?(control|ctrl|probe|prb))|system[-_. ]?control|"
    "false[-_. ]?code|genomic[-_. ]?control|(unassigned|deprecated)[-_. ]?codeword|"
    "intergenic[-_. ]region|antisense[-_. ]"
)
"""Regular expression, matched from the start of a name in any case.

Blanks (Vizgen, 10x, Bento's files), negative probes and system controls (NanoString), control and
unused codewords (10x).
"""
