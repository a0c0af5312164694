// SPDX-License-Identifier: Apache-2.0

package lxdapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// Marks say what this collection did to an object of the server. They are kept in the object's own configuration, not
// on a host: every cluster member sees them, they are written by the same request as the change that they tell of, and
// they are gone when somebody deletes the object.
//
// Terms: an object that has the mark "created" was made by us; absent deletes it. One that has an undo list was there
// before us; absent takes back what we set, where it still is what we set. One with neither was never touched by us;
// absent leaves it alone.
type Marks struct {
	Created bool `json:"created,omitempty"`
	Undo    Undo `json:"undo,omitempty"`
}

// Undo holds, by field, what somebody else's object had before us and what we set.
type Undo map[string]Setting

// Setting is one change of a field; nil stands for a field that is not set.
type Setting struct {
	Was *string `json:"was"`
	Set *string `json:"set"`
}

// The configuration keys of the marks.
const (
	createdKey = "user.thinkube.created"
	undoKey    = "user.thinkube.undo"
)

// SplitMarks takes the marks out of an object's configuration.
func SplitMarks(config Config) (Config, Marks, error) {
	plain := Config{}
	maps.Copy(plain, config)
	delete(plain, createdKey)
	delete(plain, undoKey)

	marks := Marks{Created: config[createdKey] == "true"}

	if text := config[undoKey]; text != "" {
		err := json.Unmarshal([]byte(text), &marks.Undo)
		if err != nil {
			return nil, marks, fmt.Errorf("config key %s is not what this collection writes: %w", undoKey, err)
		}
	}

	return plain, marks, nil
}

// Into gives the configuration with the marks in it, as it is sent to the server.
func (m Marks) Into(config Config) Config {
	marked := Config{}
	maps.Copy(marked, config)

	if m.Created {
		marked[createdKey] = "true"
	}

	if len(m.Undo) > 0 {
		text, _ := json.Marshal(m.Undo) // texts only: it cannot fail, and its keys come in order
		marked[undoKey] = string(text)
	}

	return marked
}

// Changed gives the marks after a change of the object's fields.
func (m Marks) Changed(before, after Config) Marks {
	if m.Created {
		return m
	}

	undo := maps.Clone(m.Undo)
	if undo == nil {
		undo = Undo{}
	}

	for _, field := range fieldsOf(before, after) {
		was, set := pick(before, field), pick(after, field)
		if equal(was, set) {
			continue
		}

		if earlier, ours := undo[field]; ours {
			was = earlier.Was
		}

		undo[field] = Setting{was, set}
		if equal(was, set) {
			delete(undo, field)
		}
	}

	return Marks{Undo: undo}
}

// Restore takes back what we set. Fields that somebody else has changed since stay; they are listed.
func (m Marks) Restore(current Config) (restored Config, foreign []string) {
	restored = Config{}
	maps.Copy(restored, current)

	for _, field := range slices.Sorted(maps.Keys(m.Undo)) {
		setting := m.Undo[field]

		switch {
		case !equal(pick(current, field), setting.Set):
			foreign = append(foreign, field)
		case setting.Was == nil:
			delete(restored, field)
		default:
			restored[field] = *setting.Was
		}
	}

	return restored, foreign
}

func fieldsOf(a, b Config) []string {
	fields := maps.Clone(a)
	if fields == nil {
		fields = Config{}
	}

	maps.Copy(fields, b)

	return slices.Sorted(maps.Keys(fields))
}

func pick(config Config, field string) *string {
	value, ok := config[field]
	if !ok {
		return nil
	}

	return &value
}

func equal(a, b *string) bool {
	if a == nil || b == nil {
		return a == b
	}

	return *a == *b
}
