package shellfile

import (
	"strconv"

	"mvdan.cc/sh/v3/syntax"
)

// maxNumber bounds every number of an arithmetic expansion, so that none can
// overflow in one program and not in another.
const maxNumber = 1 << 53

// arithmetic evaluates $((...)): whole decimal numbers, variables that hold
// one, + - * / % and parentheses.
func (p *parser) arithmetic(exp *syntax.ArithmExp) (string, error) {
	if exp.X == nil || exp.Bracket || exp.Unsigned {
		return "", p.fail(exp, "an arithmetic expansion other than $((1 + 2))%s", wayOut)
	}
	n, err := p.number(exp.X)
	if err != nil {
		return "", err
	}
	return strconv.FormatInt(n, 10), nil
}

func (p *parser) number(x syntax.ArithmExpr) (int64, error) {
	switch x := x.(type) {
	case *syntax.Word:
		return p.operandNumber(x)
	case *syntax.ParenArithm:
		return p.number(x.X)
	case *syntax.UnaryArithm:
		n, err := p.number(x.X)
		if err != nil {
			return 0, err
		}
		switch x.Op {
		case syntax.Plus:
			return n, nil
		case syntax.Minus:
			return -n, nil
		}
	case *syntax.BinaryArithm:
		return p.binary(x)
	}
	return 0, p.fail(x, "arithmetic of more than + - * / %% and parentheses%s", wayOut)
}

func (p *parser) binary(x *syntax.BinaryArithm) (int64, error) {
	switch x.Op {
	case syntax.Add, syntax.Sub, syntax.Mul, syntax.Quo, syntax.Rem:
	default:
		return 0, p.fail(x, "arithmetic of more than + - * / %% and parentheses%s", wayOut)
	}
	a, err := p.number(x.X)
	if err != nil {
		return 0, err
	}
	b, err := p.number(x.Y)
	if err != nil {
		return 0, err
	}
	return p.compute(x, a, b)
}

func (p *parser) compute(x *syntax.BinaryArithm, a, b int64) (n int64, err error) {
	if b == 0 && (x.Op == syntax.Quo || x.Op == syntax.Rem) {
		return 0, p.failValue(x, "a division by zero")
	}
	switch x.Op {
	case syntax.Add:
		n = a + b
	case syntax.Sub:
		n = a - b
	case syntax.Mul:
		if b != 0 && abs(a) > maxNumber/abs(b) {
			return 0, p.failValue(x, "a number of more than 15 digits")
		}
		n = a * b
	case syntax.Quo:
		n = a / b
	case syntax.Rem:
		n = a % b
	}
	if abs(n) > maxNumber {
		return 0, p.failValue(x, "a number of more than 15 digits")
	}
	return n, nil
}

func abs(n int64) int64 { return max(n, -n) }

// operandNumber is a number, NAME or $NAME. An empty or unset NAME counts 0;
// $NAME must hold a number without a sign, since bash puts its text in place.
func (p *parser) operandNumber(word *syntax.Word) (int64, error) {
	if len(word.Parts) != 1 {
		return 0, p.fail(word, "arithmetic with a number put together from parts%s", wayOut)
	}
	switch part := word.Parts[0].(type) {
	case *syntax.Lit:
		if !syntax.ValidName(part.Value) {
			return p.decimal(word, part.Value, false)
		}
		value, _, err := p.variable(word, part.Value)
		if err != nil || value == "" {
			return 0, err
		}
		return p.decimal(word, value, true)
	case *syntax.ParamExp:
		value, err := p.param(part, false)
		if err != nil {
			return 0, err
		}
		return p.decimal(word, value, false)
	}
	return 0, p.fail(word, "arithmetic with other than numbers%s", wayOut)
}

// decimal reads a number of at most 15 digits, without the leading zero that
// bash takes for octal.
func (p *parser) decimal(word *syntax.Word, text string, signed bool) (int64, error) {
	digits := text
	if signed && len(text) > 1 && text[0] == '-' {
		digits = text[1:]
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || len(digits) > 15 || len(digits) > 1 && digits[0] == '0' {
		return 0, p.failValue(word, "arithmetic with what is not a plain decimal number of at most 15 digits%s", wayOut)
	}
	if digits != text {
		return -int64(n), nil
	}
	return int64(n), nil
}
