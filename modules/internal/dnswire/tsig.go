// SPDX-License-Identifier: Apache-2.0

package dnswire

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// KeyOptions are a TSIG key (RFC 8945) as a task gives it.
type KeyOptions struct {
	Name      string         `ansible:"name"`
	Algorithm string         `ansible:"algorithm" choices:"hmac-sha224,hmac-sha256,hmac-sha384,hmac-sha512,hmac-md5"`
	Secret    ansible.Secret `ansible:"secret"`
	File      ansible.Path   `ansible:"file"`
	AllowMD5  bool           `ansible:"allow_md5" default:"false"`
}

// ArgumentRules says that the secret comes from one place.
func (KeyOptions) ArgumentRules() ansible.Rules {
	return ansible.Rules{MutuallyExclusive: [][]string{{"secret", "file"}}, RequiredOneOf: [][]string{{"secret", "file"}}}
}

// Key is a TSIG key that is ready for use.
type Key struct {
	Name      string // canonical, with the dot at its end
	Algorithm string // as in KeyOptions
	secret    []byte
}

const defaultAlgorithm = "hmac-sha256"

// algorithms are what messages can be signed with. SHA-1 is left out: nothing that speaks it lacks SHA-256.
var algorithms = map[string]struct {
	wire string
	hash func() hash.Hash
}{
	"hmac-sha224": {"hmac-sha224.", sha256.New224},
	"hmac-sha256": {"hmac-sha256.", sha256.New},
	"hmac-sha384": {"hmac-sha384.", sha512.New384},
	"hmac-sha512": {"hmac-sha512.", sha512.New},
	"hmac-md5":    {"hmac-md5.sig-alg.reg.int.", md5.New},
}

// Check finds what is wrong with a key without reading its file.
func (o *KeyOptions) Check(option string) error {
	if o == nil {
		return nil
	}

	var errs []error

	if o.Secret.IsSet() && o.Name == "" {
		errs = append(errs, fmt.Errorf("%s: name is missing: it is the key's name as the server knows it", option))
	}

	if o.Name != "" {
		if _, ok := dns.IsDomainName(o.Name); !ok {
			errs = append(errs, fmt.Errorf("%s: name %q: must be a domain name", option, o.Name))
		}
	}

	if o.Secret.IsSet() {
		if _, err := decodeSecret(o.Secret.Reveal()); err != nil {
			errs = append(errs, fmt.Errorf("%s: secret: %w", option, err))
		}
	}

	return errors.Join(append(errs, o.checkAlgorithm(option, o.Algorithm))...)
}

func (o *KeyOptions) checkAlgorithm(option, algorithm string) error {
	if algorithm == "hmac-md5" && !o.AllowMD5 {
		return fmt.Errorf("%s: algorithm hmac-md5 is broken; use another key, or set allow_md5 if the server knows nothing better", option)
	}

	return nil
}

// decodeSecret reads base64. Its errors do not quote it.
func decodeSecret(text string) ([]byte, error) {
	secret, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil || len(secret) == 0 {
		return nil, errors.New("must be base64, as tsig-keygen or keymgr print it")
	}

	return secret, nil
}

// Load makes the key, reading its file when the secret is there. What is secret in the file is hidden from all that the task
// says. A nil KeyOptions gives a nil Key: messages are not signed.
func (o *KeyOptions) Load(task *ansible.Task, option string) (*Key, error) {
	if o == nil {
		return nil, nil
	}

	found := keyText{name: o.Name, algorithm: o.Algorithm, secret: o.Secret.Reveal()}

	if o.File != "" {
		text, err := os.ReadFile(string(o.File))
		if err != nil {
			return nil, ansible.Fail(CodeKey, "the file must be there on the host that runs the task, and readable", "%s: reading the key's file: %w", option, err)
		}

		inFile, err := parseKeyFile(string(text))
		if err != nil {
			return nil, ansible.Fail(CodeKey, "", "%s: file %q: %w", option, o.File, err)
		}

		found = inFile.under(found)
	}

	task.Hide(ansible.NewSecret(found.secret))

	if found.algorithm == "" {
		found.algorithm = defaultAlgorithm
	}

	secret, err := decodeSecret(found.secret)
	if err == nil && found.name == "" {
		err = errors.New("the key has no name; give it with the option name")
	}

	if err == nil {
		err = o.checkAlgorithm(option, found.algorithm)
	}

	if _, known := algorithms[found.algorithm]; err == nil && !known {
		err = fmt.Errorf("algorithm %q: must be hmac-sha224, hmac-sha256, hmac-sha384 or hmac-sha512", found.algorithm)
	}

	if err != nil {
		return nil, ansible.Fail(CodeKey, "", "%s: %w", option, err)
	}

	return &Key{Name: dns.CanonicalName(found.name), Algorithm: found.algorithm, secret: secret}, nil
}

// keyText is a key as it is written down.
type keyText struct{ name, algorithm, secret string }

// under lets the task's own words win.
func (k keyText) under(task keyText) keyText {
	if task.name != "" {
		k.name = task.name
	}

	if task.algorithm != "" {
		k.algorithm = task.algorithm
	}

	return k
}

var (
	// bindKey is what tsig-keygen, rndc-confgen and ddns-confgen write.
	bindKey = regexp.MustCompile(`(?s)\bkey\s+"?([^"\s{]+)"?\s*\{(.*?)\}`)
	// keyField is a statement in it.
	keyField = regexp.MustCompile(`\b(algorithm|secret)\s+"?([^";\s]+)"?\s*;`)
	// shortKey is how nsupdate -y and Knot's keymgr write a key on one line: hmac-sha256:name:secret.
	shortKey = regexp.MustCompile(`(?m)^[#\s]*(hmac-[a-z0-9]+):([^:\s]+):([A-Za-z0-9+/=]+)\s*$`)
	// plainKey is the secret alone.
	plainKey = regexp.MustCompile(`^[A-Za-z0-9+/\s]+=*\s*$`)
)

// parseKeyFile reads a key in any of the forms that the servers' own tools write. Its errors quote nothing of it.
func parseKeyFile(text string) (keyText, error) {
	if found := shortKey.FindStringSubmatch(text); found != nil {
		return keyText{found[2], found[1], found[3]}, nil
	}

	if found := bindKey.FindStringSubmatch(text); found != nil {
		key := keyText{name: found[1]}

		for _, field := range keyField.FindAllStringSubmatch(found[2], -1) {
			if field[1] == "secret" {
				key.secret = field[2]
			} else {
				key.algorithm = strings.TrimSuffix(strings.ToLower(field[2]), ".sig-alg.reg.int.")
			}
		}

		return key, nil
	}

	if plainKey.MatchString(text) {
		return keyText{secret: strings.TrimSpace(text)}, nil
	}

	return keyText{}, errors.New("holds no key: want what tsig-keygen or keymgr -t write, or the secret alone in base64")
}

// fudge is how far clocks may differ, in seconds (RFC 8945, 10).
const fudge = 300

// sign adds a TSIG record to a packed message and gives its MAC.
func (k *Key) sign(msg []byte, now time.Time) ([]byte, []byte, error) {
	stamp := stamp{time: uint64(now.Unix()), fudge: fudge}

	variables, err := k.variables(stamp)
	if err != nil {
		return nil, nil, err
	}

	mac := k.mac(nil, msg, variables)
	record := &dns.TSIG{
		Hdr:       dns.RR_Header{Name: k.Name, Rrtype: dns.TypeTSIG, Class: dns.ClassANY},
		Algorithm: algorithms[k.Algorithm].wire, TimeSigned: stamp.time, Fudge: stamp.fudge,
		MACSize: uint16(len(mac)), MAC: fmt.Sprintf("%x", mac), OrigId: binary.BigEndian.Uint16(msg),
	}

	out := make([]byte, len(msg)+dns.Len(record)+16)
	copy(out, msg)

	end, err := dns.PackRR(record, out, len(msg), nil, false)
	if err != nil {
		return nil, nil, err
	}

	binary.BigEndian.PutUint16(out[10:], binary.BigEndian.Uint16(out[10:])+1)

	return out[:end], mac, nil
}

// stamp is the part of a TSIG record that every message of a stream has of its own.
type stamp struct {
	time       uint64
	fudge      uint16
	fault      uint16
	other      []byte
	timersOnly bool
}

// variables are the parts of the TSIG record that are signed (RFC 8945, 4.3.3; 5.3.1 for all but the first of a stream).
func (k *Key) variables(s stamp) ([]byte, error) {
	var out []byte

	if !s.timersOnly {
		for _, name := range []string{k.Name, algorithms[k.Algorithm].wire} {
			packed := make([]byte, 256)

			end, err := dns.PackDomainName(name, packed, 0, nil, false)
			if err != nil {
				return nil, fmt.Errorf("name %q: %w", name, err)
			}

			out = append(out, packed[:end]...)

			if name == k.Name && len(out) == end {
				out = binary.BigEndian.AppendUint16(out, dns.ClassANY)
				out = binary.BigEndian.AppendUint32(out, 0)
			}
		}
	}

	out = binary.BigEndian.AppendUint16(out, uint16(s.time>>32))
	out = binary.BigEndian.AppendUint32(out, uint32(s.time))
	out = binary.BigEndian.AppendUint16(out, s.fudge)

	if !s.timersOnly {
		out = binary.BigEndian.AppendUint16(out, s.fault)
		out = binary.BigEndian.AppendUint16(out, uint16(len(s.other)))
		out = append(out, s.other...)
	}

	return out, nil
}

func (k *Key) mac(parts ...[]byte) []byte {
	sum := hmac.New(algorithms[k.Algorithm].hash, k.secret)
	for _, part := range parts {
		_, _ = sum.Write(part)
	}

	return sum.Sum(nil)
}

// verifier checks the answers to one signed request. A server may leave up to 99 messages of a transfer unsigned; the next
// signature covers them (RFC 8945, 5.3.1).
type verifier struct {
	key      *Key
	previous []byte // the MAC of the request, then of the last signed answer
	unsigned []byte // messages since
	count    int
	started  bool // the first answer was signed
}

// mostUnsigned is how many messages in a row may come without signature.
const mostUnsigned = 99

// check takes the next message as it came, and where its TSIG record begins (nil record: it has none).
func (v *verifier) check(msg []byte, record *dns.TSIG, begin int, now time.Time) error {
	if record == nil {
		v.count++
		if !v.started || v.count > mostUnsigned {
			return fmt.Errorf("%w: the answer is not signed", errSignature)
		}

		v.unsigned = append(v.unsigned, msg...)

		return nil
	}

	wire := dns.CanonicalName(record.Algorithm)
	if dns.CanonicalName(record.Hdr.Name) != v.key.Name || wire != algorithms[v.key.Algorithm].wire {
		return fmt.Errorf("%w: the answer is signed with key %q and algorithm %q", errSignature, record.Hdr.Name, record.Algorithm)
	}

	if record.Error != 0 && record.MAC == "" {
		return fmt.Errorf("%w: the server says %s", errSignature, dns.RcodeToString[int(record.Error)])
	}

	var other, got []byte

	_, err := fmt.Sscanf(record.MAC, "%x", &got)
	if err == nil && record.OtherData != "" {
		_, err = fmt.Sscanf(record.OtherData, "%x", &other)
	}

	if err != nil {
		return fmt.Errorf("%w: %w", errSignature, err)
	}

	variables, err := v.key.variables(stamp{record.TimeSigned, record.Fudge, record.Error, other, v.started})
	if err != nil {
		return err
	}

	stripped := bytes.Clone(msg[:begin])
	binary.BigEndian.PutUint16(stripped, record.OrigId)
	binary.BigEndian.PutUint16(stripped[10:], binary.BigEndian.Uint16(stripped[10:])-1)

	length := binary.BigEndian.AppendUint16(nil, uint16(len(v.previous)))
	want := v.key.mac(length, v.previous, v.unsigned, stripped, variables)

	if !hmac.Equal(want, got) {
		return fmt.Errorf("%w: it does not fit the answer", errSignature)
	}

	if record.Error != 0 {
		return fmt.Errorf("%w: the server says %s", errSignature, dns.RcodeToString[int(record.Error)])
	}

	if drift := now.Unix() - int64(record.TimeSigned); drift > int64(record.Fudge) || -drift > int64(record.Fudge) {
		return fmt.Errorf("%w: the server's clock differs by %d seconds", errSignature, drift)
	}

	v.previous, v.unsigned, v.count, v.started = got, nil, 0, true

	return nil
}
