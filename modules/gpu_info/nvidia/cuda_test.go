// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package nvidia

import (
	"math"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCompare(t *testing.T) {
	given := []uint32{0, 1, 2, 0xffffffff}
	got := make([]uint32, len(given))

	for i := range given {
		got[i] = expected(given[i])
	}

	assert.Empty(t, compare(given, got))

	got[2] ^= 1 << 31
	got[3]++
	assert.Regexp(t, `^2 of 4 results; the first is number 2, 0x[0-9a-f]{8} instead of 0x[0-9a-f]{8}$`, compare(given, got))

	assert.NotEmpty(t, compare(given, make([]uint32, len(given))), "zeros, as a kernel that did not run leaves them")
}

// TestKernelText runs check.ptx itself, thread by thread, and compares it with expected. It is not NVIDIA's translator that
// reads it here; that the text is what it should be needs no card.
func TestKernelText(t *testing.T) {
	program := parsePTX(t, kernel)
	random := rand.New(rand.NewPCG(1, 2))
	numbers := []uint32{0, 1, 0x7fffffff, 0x80000000, 0xffffffff}

	for range 500 {
		numbers = append(numbers, random.Uint32())
	}

	const perBlock = 256

	memory := map[uint64]uint32{}
	for i, number := range numbers {
		memory[0x1000+4*uint64(i)] = number
	}

	for thread := range 2 * perBlock {
		m := machine{t: t, memory: memory, registers: map[string]uint64{
			"%ctaid.x": uint64(thread / perBlock), "%ntid.x": perBlock, "%tid.x": uint64(thread % perBlock),
			"[p_in]": 0x1000, "[p_out]": 0x10000, "[p_count]": uint64(len(numbers)), "[p_rounds]": rounds,
		}}
		m.run(program)
	}

	require.Len(t, memory, 2*len(numbers), "a result for each number, and nothing beyond")

	for i, number := range numbers {
		require.Equal(t, expected(number), memory[0x10000+4*uint64(i)], "number %d", i)
	}
}

// ptx is a kernel's instructions, and where its labels are.
type ptx struct {
	code   [][]string // predicate or "", operation, operands
	labels map[string]int
}

var instruction = regexp.MustCompile(`^(?:@(%p\d+) )?([a-z0-9.]+)(?: (.+))?;$`)

func parsePTX(t *testing.T, text string) ptx {
	t.Helper()

	program := ptx{labels: map[string]int{}}
	_, body, found := strings.Cut(text, "\n{\n")
	require.True(t, found)

	for line := range strings.Lines(body) {
		line = strings.TrimSpace(line)

		switch {
		case line == "" || line == "}" || strings.HasPrefix(line, ".reg"):
		case strings.HasSuffix(line, ":"):
			program.labels[strings.TrimSuffix(line, ":")] = len(program.code)
		default:
			parts := instruction.FindStringSubmatch(line)
			require.NotNil(t, parts, line)
			program.code = append(program.code, append(parts[1:3], strings.Split(parts[3], ", ")...))
		}
	}

	return program
}

// machine is one thread.
type machine struct {
	t         *testing.T
	memory    map[uint64]uint32
	registers map[string]uint64
}

// value of a register or a literal; a register that was not set is an error of the kernel.
func (m *machine) value(operand string) uint64 {
	if value, ok := m.registers[operand]; ok {
		return value
	}

	if digits, ok := strings.CutPrefix(operand, "0f"); ok {
		bits, err := strconv.ParseUint(digits, 16, 32)
		require.NoError(m.t, err)

		return bits
	}

	number, err := strconv.ParseUint(operand, 10, 32)
	require.NoError(m.t, err, "operand %q", operand)

	return number
}

func (m *machine) address(operand string) uint64 {
	return m.value(strings.Trim(operand, "[]"))
}

func (m *machine) run(program ptx) {
	for at := 0; at < len(program.code); at++ {
		predicate, operation, operands := program.code[at][0], program.code[at][1], program.code[at][2:]
		if predicate != "" && m.value(predicate) == 0 {
			continue
		}

		switch operation {
		case "ret":
			return
		case "bra":
			at = program.labels[operands[0]] - 1
		case "st.global.u32":
			m.memory[m.address(operands[0])] = uint32(m.value(operands[1]))
		case "ld.global.u32":
			number, ok := m.memory[m.address(operands[1])]
			require.True(m.t, ok, "read where nothing is")

			m.registers[operands[0]] = uint64(number)
		default:
			m.registers[operands[0]] = m.compute(operation, operands[1:])
		}
	}
}

func (m *machine) compute(operation string, operands []string) uint64 {
	var v [3]uint64
	for i, operand := range operands {
		v[i] = m.value(operand)
	}

	a, b, c := uint32(v[0]), uint32(v[1]), uint32(v[2])

	switch operation {
	case "ld.param.u64", "ld.param.u32", "mov.u32", "mov.b32", "mov.f32", "cvta.to.global.u64":
		return v[0]
	case "mad.lo.u32":
		return uint64(a*b + c)
	case "mul.lo.u32":
		return uint64(a * b)
	case "mul.wide.u32":
		return uint64(a) * uint64(b)
	case "add.u32":
		return uint64(a + b)
	case "add.s64":
		return v[0] + v[1]
	case "shr.u32":
		return uint64(a >> b)
	case "xor.b32":
		return uint64(a ^ b)
	case "and.b32":
		return uint64(a & b)
	case "or.b32":
		return uint64(a | b)
	case "setp.ge.u32":
		return truth(a >= b)
	case "setp.lt.u32":
		return truth(a < b)
	case "fma.rn.f32":
		product := float64(math.Float32frombits(a)) * float64(math.Float32frombits(b))

		return uint64(math.Float32bits(float32(product + float64(math.Float32frombits(c)))))
	}

	m.t.Fatalf("the test does not know the instruction %s", operation)

	return 0
}

func truth(is bool) uint64 {
	if is {
		return 1
	}

	return 0
}
