// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// exchange is the way to the module's peers on other hosts. A module process cannot reach another host; the controller
// can. So a question ends this process with a pause, the controller has it answered there, and the task runs again with
// the answer. Questions are identified by their content and by how many steps the task has done: the same question gets
// the answer it had, until the next step is done.
type exchange struct {
	sealer  cipher.AEAD
	answers map[string]answerMsg
}

// answerMsg is what a peer call printed.
type answerMsg struct {
	Answer  json.RawMessage `json:"answer,omitempty"`
	Finally *Finally        `json:"finally,omitempty"`

	Failed  bool   `json:"failed,omitempty"`
	Msg     string `json:"msg,omitempty"`
	Hint    string `json:"hint,omitempty"`
	Failure struct {
		Code Code `json:"code"`
	} `json:"failure,omitzero"`
}

// pause ends a pass: the task goes on when the question is answered, or over a new connection.
type pause struct {
	ID      string `json:"id"`
	Host    string `json:"host,omitempty"`
	Peer    string `json:"peer,omitempty"`
	Request any    `json:"request,omitempty"`
	// Reconnect is for how many seconds the controller tries to reach this host again, instead of asking another.
	Reconnect float64 `json:"reconnect,omitempty"`
}

// Error is seen only where a module wraps the pause in a message.
func (p *pause) Error() string {
	if p.Reconnect > 0 {
		return "waiting for a new connection"
	}

	return fmt.Sprintf("asking %q on host %q", p.Peer, p.Host)
}

// resumed is what a task takes with it over a pause.
type resumed struct {
	Read   bool            `json:"read"`
	Before json.RawMessage `json:"before,omitempty"`
	Done   []string        `json:"done"`

	Warnings     []string      `json:"warnings"`
	Deprecations []Deprecation `json:"deprecations"`
	Until        time.Time     `json:"until"`

	// Hidden are the secrets that earlier passes found. The state before is told only in the end, by a pass that may not
	// find them any more.
	Hidden []string `json:"hidden,omitempty"`
}

// newExchange takes the controller's key for this task, 32 bytes in base64.
func newExchange(key string, answers map[string]answerMsg) (*exchange, error) {
	raw, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(raw) != 32 {
		return nil, Fail(CodeInternal, "", "the envelope's key must be 32 bytes in base64")
	}

	block, err := aes.NewCipher(raw)
	if err != nil {
		return nil, err
	}

	sealer, err := cipher.NewGCM(block)

	return &exchange{sealer: sealer, answers: answers}, err
}

// Ask calls a peer function of this module on another inventory host and decodes its answer. The error may be a pause:
// return it, wrapped or not, and do nothing more. The request must be the same each time (no clock, no random number).
func (t *Task) Ask(_ context.Context, host, peer string, request, answer any) error {
	if t.exchange == nil {
		return Fail(CodeNeedsCollection, "call the module by its full name thinkube.infra.NAME, with the collection installed, and not with async",
			"asking host %q: only the collection's action plugin can reach a second host", host)
	}

	text, err := json.Marshal(request)
	if err != nil {
		return Fail(CodeInternal, "", "encoding a request: %w", err)
	}

	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %d %s", host, peer, len(t.done), text))
	id := hex.EncodeToString(sum[:8])

	got, ok := t.exchange.answers[id]
	if !ok {
		return &pause{ID: id, Host: host, Peer: peer, Request: json.RawMessage(text)}
	}

	if got.Failed {
		code := got.Failure.Code
		if code == "" {
			code = CodeFailed
		}

		return Fail(code, got.Hint, "on host %q: %s", host, got.Msg)
	}

	err = json.Unmarshal(got.Answer, answer)
	if err != nil {
		return Fail(CodeInternal, "", "answer of host %q: %w", host, err)
	}

	return nil
}

// Reconnect ends this process, has the controller drop its connection and open a new one, for which it tries as long as
// the window is, and goes on with the task over that. Like Ask's, its error may be a pause. The id is what Reconnected
// tells of in the new process. A task that the collection's action plugin did not start cannot do that, and goes on at
// once: CanReconnect tells.
func (t *Task) Reconnect(id string, window time.Duration) error {
	if !t.CanReconnect() || t.Reconnected(id) {
		return nil
	}

	return &pause{ID: id, Reconnect: window.Seconds()}
}

// CanReconnect tells whether this task can go on over a new connection.
func (t *Task) CanReconnect() bool { return t.exchange != nil }

// Reconnected tells whether this process was started over a new connection, for Reconnect with that id.
func (t *Task) Reconnected(id string) bool {
	if t.exchange == nil {
		return false
	}

	_, ok := t.exchange.answers[id]

	return ok
}

// Resumed tells whether an earlier process of this task has done its part and paused.
func (t *Task) Resumed() bool { return t.exchange != nil && len(t.exchange.answers) > 0 }

// Seal encrypts a secret for the other process of this task. Ansible prints what programs print at -vvv.
func (t *Task) Seal(secret Secret) (string, error) {
	if t.exchange == nil {
		return "", Fail(CodeInternal, "", "sealing without an exchange")
	}

	t.Hide(secret)

	return t.exchange.seal([]byte(secret.Reveal()))
}

// Unseal decrypts what Seal made in another process of this task, and hides it in this one.
func (t *Task) Unseal(sealed string) (Secret, error) {
	if t.exchange == nil {
		return Secret{}, Fail(CodeInternal, "", "unsealing without an exchange")
	}

	plain, err := t.exchange.unseal(sealed)
	if err != nil {
		return Secret{}, Fail(CodeInternal, "", "sealed answer: %w", err)
	}

	secret := NewSecret(string(plain))
	t.Hide(secret)

	return secret, nil
}

func (e *exchange) seal(plain []byte) (string, error) {
	nonce := make([]byte, e.sealer.NonceSize())

	_, err := rand.Read(nonce)
	if err != nil {
		return "", err
	}

	return base64.StdEncoding.EncodeToString(e.sealer.Seal(nonce, nonce, plain, nil)), nil
}

func (e *exchange) unseal(sealed string) ([]byte, error) {
	raw, err := base64.StdEncoding.DecodeString(sealed)
	if err != nil {
		return nil, err
	}

	size := e.sealer.NonceSize()
	if len(raw) < size {
		return nil, errors.New("too short")
	}

	return e.sealer.Open(nil, raw[:size], raw[size:], nil)
}

// pauseAnswer is the line that asks the controller; what was done so far travels sealed. It is not masked as a result is:
// the masker could damage what the controller must read, and a request holds no secrets.
func (t *Task) pauseAnswer(asked *pause) ([]byte, error) {
	text, err := json.Marshal(resumed{t.read, t.before, t.done, t.warnings, t.deprecations, t.until, t.mask.secrets()})
	if err != nil {
		return nil, err
	}

	sealed, err := t.exchange.seal(text)
	if err != nil {
		return nil, err
	}

	return json.Marshal(map[string]any{"_thinkube_ask": asked, "_thinkube_resume": sealed})
}

// resume takes up what an earlier pass of this task had done.
func (t *Task) resume(sealed string) error {
	if sealed == "" {
		return nil
	}

	text, err := t.exchange.unseal(sealed)
	if err != nil {
		return err
	}

	var was resumed

	err = json.Unmarshal(text, &was)
	if err == nil {
		t.read, t.before, t.done, t.until = was.Read, was.Before, was.Done, was.Until
		t.warnings, t.deprecations = was.Warnings, was.Deprecations
		t.mask.Add(was.Hidden...)
	}

	return err
}
