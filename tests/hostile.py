"""Names that are markup, formulas, codes or paths elsewhere: to this package they are names."""

HOSTILE = [
    "below 5$ _{and 9$",
    "a$\\b{c$",
    "$$x^2$$ \\(y\\) {{z}} {% raw %}",
    "{{ 7 * 7 }}{% for x in y %}",
    "{0} %s %(name)s ${HOME}",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)> & &amp; &lt;',
    "---\nlicense: mit\n---",
    "# heading\n\n- item | cell || ``` code",
    "[link](javascript:alert(1)) ![](x) **bold** _it_ ~~no~~",
    "<!-- comment --> ]]> <![CDATA[",
    "two\nlines\r\nand\ttabs \u2028 more",
    "\x1b[31mred\x1b[0m \x00 \x07 \x85",
    "\u202egnirts\u202c",
    "[bold]rich[/bold] [/] [link=x]",
    "🙂 👩‍👩‍👧 漢字 שלום مرحبا",
    "half \ud800 a character",
    "..\\..\\windows .. ~ C:\\x con nul",
    "=1+1;@SUM(A1)",
    "x" * 400,
    "many words " * 60,
    "null",
    "1e5",
]
"""Names without a slash, which are refused as names of nodes."""
