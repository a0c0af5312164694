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
type needles struct {
	begins   [256]bool // whether one begins with the byte: small enough to stay in the processor's cache
	by       [256][]needle
	shortest int // bytes
}

// with adds one; n may be nil.
func (n *needles) with(one needle) *needles {
	if n == nil {
		n = &needles{shortest: len(one.text)}
	}

	first := one.text[0]
	n.begins[first] = true
	n.by[first] = append(n.by[first], one)
	n.shortest = min(n.shortest, len(one.text))

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
	if hide == nil || len(text) < hide.shortest {
		return nil
	}

	var spans []span

	for at := range len(text) - hide.shortest + 1 {
		if !hide.begins[text[at]] {
			continue
		}

		for _, n := range hide.by[text[at]] {
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

// AppendJSON appends a value, as encoding/json would write it, without secrets. The keys in keep are never changed: they
// are names that the program knows, not data. The error is encoding/json's, of a number that is none; its text may hold
// secrets.
func (m *Masker) AppendJSON(out []byte, value any, keep ...string) ([]byte, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()

	w := &maskedJSON{mask: m, keep: keep, out: out}
	err := w.value(value, 0)

	return w.out, err
}

// maskedJSON is the state of one AppendJSON, whose lock is held.
type maskedJSON struct {
	mask *Masker
	keep []string
	out  []byte
	keys []string // of the dicts that are being written, from the outermost on
}

// fixedText is written as it is: a word that only this package chooses, out of a documented list.
type fixedText string

func (w *maskedJSON) value(value any, depth int) error {
	if depth > maxMaskDepth {
		w.write("(nested too deeply)")

		return nil
	}

	switch v := value.(type) {
	case nil:
		w.out = append(w.out, "null"...)
	case bool:
		w.out = strconv.AppendBool(w.out, v)
	case string:
		w.write(w.mask.text(v, w.mask.all))
	case fixedText:
		w.write(string(v))
	case int, int64, float64, json.Number:
		return w.number(v)
	case []any:
		return w.list(v, depth)
	case map[string]any:
		return w.dict(v, depth)
	default:
		return w.encoded(v, depth)
	}

	return nil
}

// write writes a text that has no secrets any more.
func (w *maskedJSON) write(text string) {
	if len(w.out)+len(text)+2 > cap(w.out) {
		w.out = slices.Grow(w.out, len(w.out)+len(text)+2) // append would copy a large result more often
	}

	w.out = appendJSONText(w.out, text)
}

// appendJSONText appends a JSON string as encoding/json writes it. Most texts need no escape.
func appendJSONText(out []byte, text string) []byte {
	for _, c := range []byte(text) {
		if c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, _ := json.Marshal(text) // a string is always encoded

			return append(out, quoted...)
		}
	}

	out = append(out, '"')
	out = append(out, text...)

	return append(out, '"')
}

// number hides a number whose digits contain a secret.
func (w *maskedJSON) number(value any) error {
	number, err := plain(value, 0)
	if err != nil {
		w.write(w.mask.text(fmt.Sprint(value), w.mask.all))

		return nil
	}

	if w.mask.all != nil && (findSpans(pyText(number), w.mask.all) != nil || findSpans(fmt.Sprint(value), w.mask.all) != nil) {
		w.write(hiddenValue)

		return nil
	}

	if f, ok := number.(nonFinite); ok {
		w.write(f.name()) // JSON has no such number

		return nil
	}

	digits, err := json.Marshal(value)
	w.out = append(w.out, digits...)

	return err
}

func (w *maskedJSON) list(list []any, depth int) error {
	w.out = append(w.out, '[')

	for i, item := range list {
		if i > 0 {
			w.out = append(w.out, ',')
		}

		err := w.value(item, depth+1)
		if err != nil {
			return err
		}
	}

	w.out = append(w.out, ']')

	return nil
}

// dict writes the keys in the order of what is shown of them.
func (w *maskedJSON) dict(dict map[string]any, depth int) error {
	begin := len(w.keys)
	for key := range dict {
		w.keys = append(w.keys, key)
	}

	names := w.keys[begin:]
	slices.Sort(names)

	keys := w.hideKeys(names)
	if keys != nil {
		names = slices.Sorted(maps.Keys(keys))
	}

	w.out = append(w.out, '{')

	for i, name := range names {
		key := name
		if keys != nil {
			key = keys[name]
		}

		if i > 0 {
			w.out = append(w.out, ',')
		}

		w.write(name)
		w.out = append(w.out, ':')

		err := w.value(dict[key], depth+1)
		if err != nil {
			return err
		}
	}

	w.out = append(w.out, '}')
	w.keys = w.keys[:begin]

	return nil
}

// name is what is shown of a key.
func (w *maskedJSON) name(key string) string {
	name := w.mask.text(key, w.mask.keys)
	if name != key && slices.Contains(w.keep, key) {
		return key
	}

	return name
}

// hideKeys gives the sorted keys by what is shown of them; nil when they are shown as they are.
func (w *maskedJSON) hideKeys(keys []string) map[string]string {
	if !slices.ContainsFunc(keys, func(key string) bool { return w.name(key) != key }) {
		return nil
	}

	shown := make(map[string]string, len(keys))

	for _, key := range keys {
		name := w.name(key)

		for i, free := 2, name; ; i++ {
			if _, taken := shown[name]; !taken {
				break
			}

			name = fmt.Sprintf("%s (%d)", free, i) // two keys were hidden
		}

		shown[name] = key
	}

	return shown
}

// encoded goes by way of JSON.
func (w *maskedJSON) encoded(value any, depth int) error {
	text, err := json.Marshal(value)
	if err != nil {
		w.write(fmt.Sprintf("(a %T that cannot be written as JSON)", value)) // the error may quote the value

		return nil
	}

	var decoded any

	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()

	err = decoder.Decode(&decoded)
	if err != nil {
		w.write(fmt.Sprintf("(a %T that cannot be read back from JSON)", value))

		return nil
	}

	return w.value(decoded, depth+1)
}
