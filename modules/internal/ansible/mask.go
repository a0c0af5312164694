// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// Shorter secrets have forms or parts that cannot be told from ordinary text.
const (
	minBare     = 4 // bytes of a secret that is looked for in base64 without padding
	minFragment = 6 // bytes of a secret that is looked for inside other base64 text
	minKey      = 8 // characters of a secret that is looked for in the keys of dicts
	minLine     = 8 // characters of a line of a secret that is hidden by itself
)

// maxMaskDepth ends values that contain themselves.
const maxMaskDepth = 1000

// Masker takes secrets out of everything that leaves the process. It hides what ansible-core 2.19 hides: a text that
// equals a secret, a number that contains its digits, a secret inside a text. It also knows each secret in base64 (with
// either alphabet, padded or not, and inside the base64 of a longer text), as an escaped JSON, Go, Python or shell
// string and percent-encoded, each of its lines of 8 characters and more, and hides secrets of 8 characters and more in
// the keys of dicts. It does not know base64 that is broken into lines, nor any other transformation.
//
// As in core, a very short secret takes ordinary text with it. A Masker may be used by several goroutines.
type Masker struct {
	mu    sync.RWMutex
	known map[string]bool
	all   *needles // nil as long as there are none, as in most tasks
	keys  *needles // of secrets that are hidden in keys too
	whole map[string]bool
}

// needles are kept by their first byte, so that a text is gone through once, however many there are.
type needles [256][]needle

// with adds one; n may be nil.
func (n *needles) with(one needle) *needles {
	if n == nil {
		n = &needles{}
	}

	n[one.text[0]] = append(n[one.text[0]], one)

	return n
}

// needle is a text to hide.
type needle struct {
	text string
	// The base64 character before or after it also carries bits of the secret.
	before, after bool
}

// NewMasker makes a Masker that knows no secret.
func NewMasker() *Masker {
	return &Masker{known: map[string]bool{}, whole: map[string]bool{}}
}

// Add makes secrets known. Empty ones are ignored.
func (m *Masker) Add(secrets ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()

	for _, secret := range secrets {
		m.add(secret)
		m.add(strings.TrimSpace(secret)) // a secret from a file ends in a line break, what is made of it does not

		for _, line := range strings.Split(secret, "\n") {
			line = strings.TrimSpace(line)
			if utf8.RuneCountInString(line) >= minLine {
				m.add(line)
			}
		}
	}
}

func (m *Masker) add(secret string) {
	if secret == "" || m.known[secret] {
		return
	}

	m.known[secret] = true
	isKey := utf8.RuneCountInString(secret) >= minKey

	for _, form := range forms(secret) {
		m.whole[form.text] = true
		m.all = m.all.with(form)

		if isKey {
			m.keys = m.keys.with(form)
		}
	}
}

// secrets are all that were made known, in order.
func (m *Masker) secrets() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()

	return slices.Sorted(maps.Keys(m.known))
}

// forms lists how a secret may be written.
func forms(secret string) []needle {
	text := validText(secret)
	texts := []string{text, strings.ReplaceAll(text, "'", `'\''`), base64.StdEncoding.EncodeToString([]byte(secret)),
		base64.URLEncoding.EncodeToString([]byte(secret))}

	for _, quoted := range []string{jsonText(text, true), jsonText(text, false), jsonQuote(text), strconv.Quote(text),
		strconv.QuoteToASCII(text), pyQuote(text)} {
		texts = append(texts, quoted[1:len(quoted)-1])
	}

	for _, encoded := range []string{url.QueryEscape(text), url.PathEscape(text), url.User(text).String(), percentAll(text)} {
		texts = append(texts, encoded, lowerPercent(encoded))
	}

	if len(secret) >= minBare {
		texts = append(texts, base64.RawStdEncoding.EncodeToString([]byte(secret)), base64.RawURLEncoding.EncodeToString([]byte(secret)))
	}

	slices.Sort(texts)

	var needles []needle
	for _, form := range slices.Compact(texts) {
		needles = append(needles, needle{text: form})
	}

	if len(secret) >= minFragment {
		needles = append(needles, fragments(secret, base64.RawStdEncoding)...)
		needles = append(needles, fragments(secret, base64.RawURLEncoding)...)
	}

	return needles
}

// jsonText writes a JSON string as Go does.
func jsonText(text string, escapeHTML bool) string {
	var out bytes.Buffer

	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(escapeHTML)

	_ = encoder.Encode(text) // text is valid, and a buffer takes everything

	return strings.TrimSuffix(out.String(), "\n")
}

// percentAll leaves only what RFC 3986 calls unreserved; url.QueryEscape writes a space as "+".
func percentAll(text string) string {
	return strings.ReplaceAll(url.QueryEscape(text), "+", "%20")
}

// lowerPercent writes the hex digits of percent-encoding in lower case.
func lowerPercent(text string) string {
	out := []byte(text)

	for i := 0; i+2 < len(out); i++ {
		if out[i] == '%' {
			copy(out[i+1:], bytes.ToLower(out[i+1:i+3]))
			i += 2
		}
	}

	return string(out)
}

// fragments gives the base64 characters that a secret alone decides when it stands inside a longer text, for each of
// the three ways in which it can lie across groups of three bytes.
func fragments(secret string, encoding *base64.Encoding) []needle {
	var needles []needle

	for offset := range 3 {
		encoded := encoding.EncodeToString([]byte(strings.Repeat("\x00", offset) + secret))
		first := (offset*8 + 5) / 6
		last := (offset + len(secret)) * 8 / 6

		needles = append(needles, needle{
			text:   encoded[first:last],
			before: offset > 0,
			after:  (offset+len(secret))%3 > 0,
		})
	}

	return needles
}

// Text hides all secrets in a text. Bytes that are not UTF-8 become U+FFFD.
func (m *Masker) Text(text string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()

	return m.text(text, m.all)
}

// Bytes is Text for bytes.
func (m *Masker) Bytes(text []byte) []byte { return []byte(m.Text(string(text))) }

func (m *Masker) text(text string, hide *needles) string {
	text = validText(text)

	spans := findSpans(text, hide)
	if spans == nil {
		return text
	}

	if m.whole[text] {
		return hiddenValue
	}

	var out strings.Builder

	shown := 0

	for _, s := range spans {
		out.WriteString(text[shown:s.start])
		out.WriteString(hiddenPart)

		shown = s.end
	}

	out.WriteString(text[shown:])

	return out.String()
}

// span is a part of a text, from start to before end.
type span struct{ start, end int }

// findSpans gives the parts to hide, in order. Parts that overlap become one.
func findSpans(text string, hide *needles) []span {
	if hide == nil {
		return nil
	}

	var spans []span

	for at := range len(text) {
		for _, n := range hide[text[at]] {
			if strings.HasPrefix(text[at:], n.text) {
				spans = append(spans, n.widen(text, at))
			}
		}
	}

	return merge(spans)
}

// widen takes in the neighbouring base64 characters that carry bits of the secret.
func (n needle) widen(text string, at int) span {
	s := span{at, at + len(n.text)}

	if n.before && s.start > 0 && isBase64(text[s.start-1]) {
		s.start--
	}

	if n.after && s.end < len(text) && isBase64(text[s.end]) {
		s.end++
	}

	return s
}

func isBase64(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("+/-_", c) >= 0
}

func merge(spans []span) []span {
	if spans == nil {
		return nil
	}

	slices.SortFunc(spans, func(a, b span) int { return a.start - b.start })

	merged := spans[:1]

	for _, s := range spans[1:] {
		last := &merged[len(merged)-1]

		if s.start < last.end {
			last.end = max(last.end, s.end)
		} else {
			merged = append(merged, s)
		}
	}

	return merged
}

// Value gives a copy of a value, as encoding/json would write it, without secrets. It is made of nil, bool, string,
// json.Number and other numbers, []any and map[string]any. The keys in keep are never changed: they are names that the
// program knows, not data.
func (m *Masker) Value(value any, keep ...string) any {
	m.mu.RLock()
	defer m.mu.RUnlock()

	return m.value(value, keep, 0)
}

func (m *Masker) value(value any, keep []string, depth int) any {
	if depth > maxMaskDepth {
		return "(nested too deeply)"
	}

	switch v := value.(type) {
	case nil, bool:
		return v
	case string:
		return m.text(v, m.all)
	case int, int64, float64, json.Number:
		return m.number(v)
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = m.value(item, keep, depth+1)
		}

		return out
	case map[string]any:
		return m.dict(v, keep, depth)
	default:
		return m.encoded(v, keep, depth)
	}
}

// number hides a number whose digits contain a secret.
func (m *Masker) number(value any) any {
	number, err := plain(value, 0)
	if err != nil {
		return m.text(fmt.Sprint(value), m.all)
	}

	if findSpans(pyText(number), m.all) != nil || findSpans(fmt.Sprint(value), m.all) != nil {
		return hiddenValue
	}

	if f, ok := number.(nonFinite); ok {
		return f.name() // JSON has no such number
	}

	return value
}

func (m *Masker) dict(dict map[string]any, keep []string, depth int) any {
	out := make(map[string]any, len(dict))

	for _, key := range slices.Sorted(maps.Keys(dict)) {
		name := key
		if !slices.Contains(keep, key) {
			name = m.text(key, m.keys)
		}

		for i, free := 2, name; ; i++ {
			if _, taken := out[name]; !taken {
				break
			}

			name = fmt.Sprintf("%s (%d)", free, i) // two keys were hidden
		}

		out[name] = m.value(dict[key], keep, depth+1)
	}

	return out
}

// encoded goes by way of JSON.
func (m *Masker) encoded(value any, keep []string, depth int) any {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprintf("(a %T that cannot be written as JSON)", value) // the error may quote the value
	}

	var decoded any

	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()

	err = decoder.Decode(&decoded)
	if err != nil {
		return fmt.Sprintf("(a %T that cannot be read back from JSON)", value)
	}

	return m.value(decoded, keep, depth+1)
}
