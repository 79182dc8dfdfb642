package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"
)

const (
	firstPause = 100 * time.Millisecond
	maxPause   = 5 * time.Second
)

// Topic is the REST method projects.topics.publish of one topic.
type Topic struct {
	URL    string                 // https://pubsub.googleapis.com/v1/projects/P/topics/T
	Token  func() (string, error) // an access token; empty for an emulator
	GiveUp time.Duration          // how long a request is retried
	Client *http.Client
}

// StatusError is an answer other than 200.
type StatusError struct {
	Status int
	Body   string
}

func (e *StatusError) Error() string { return fmt.Sprintf("HTTP %d: %s", e.Status, e.Body) }

// Transient reports whether another try may succeed. An error without an answer is always transient.
func (e *StatusError) Transient() bool {
	return e.Status == 409 || e.Status == 429 || e.Status == 499 || e.Status >= 500
}

type message struct {
	Data        []byte            `json:"data"` // base64, by encoding/json
	OrderingKey string            `json:"orderingKey"`
	Attributes  map[string]string `json:"attributes"`
}

// Publish sends the messages of one ordering key in one request and returns their ids. It sends the same bytes again while
// failures are transient, for as long as GiveUp.
func (t *Topic) Publish(messages []message) ([]string, error) {
	body, err := json.Marshal(map[string]any{"messages": messages})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), t.GiveUp)
	defer cancel()
	for failures := 1; ; failures++ {
		ids, err := t.post(ctx, body)
		if err == nil && len(ids) != len(messages) {
			err = fmt.Errorf("Pub/Sub gave %d ids for %d messages", len(ids), len(messages))
		}
		if status, ok := err.(*StatusError); err == nil || ok && !status.Transient() {
			return ids, err
		}
		select {
		case <-time.After(backoff(failures)):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (t *Topic) post(ctx context.Context, body []byte) ([]string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, t.URL+":publish", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	token, err := t.Token()
	if err != nil {
		return nil, err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := t.Client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, &StatusError{response.StatusCode, string(text)}
	}
	var answer struct{ MessageIds []string }
	return answer.MessageIds, json.Unmarshal(text, &answer)
}

func backoff(failures int) time.Duration {
	pause := min(firstPause<<min(failures-1, 10), maxPause)
	return pause/2 + rand.N(pause/2)
}
