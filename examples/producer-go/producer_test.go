package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"
)

// A server that hands each request's bodies to the test and answers with the status that it gets back.
func serve(t *testing.T) (*Producer, chan []string, chan int) {
	requests, answers := make(chan []string), make(chan int)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request struct{ Messages []message }
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			t.Error(err)
		}
		var bodies, ids []string
		for _, m := range request.Messages {
			bodies, ids = append(bodies, string(m.Data)), append(ids, "id of "+string(m.Data))
		}
		requests <- bodies
		w.WriteHeader(<-answers)
		json.NewEncoder(w).Encode(map[string][]string{"messageIds": ids})
	}))
	t.Cleanup(server.Close)
	topic := &Topic{server.URL + "/v1/projects/p/topics/t", func() (string, error) { return "", nil }, time.Minute, server.Client()}
	return NewProducer(topic, func(key string) string { return key }), requests, answers
}

func write(key, body string) Write { return NewWrite("customer", "upsert", key, []byte(body)) }

func TestNothingOvertakesAFailedWrite(t *testing.T) {
	producer, requests, answers := serve(t)
	first := producer.Publish(write("a", "1"))
	received := <-requests
	second, third := producer.Publish(write("a", "2")), producer.Publish(write("a", "3"))
	if err := producer.Resume("a"); err == nil {
		t.Error("a slot with a request in flight was resumed")
	}
	answers <- http.StatusForbidden
	var held *SlotHeldError
	if _, err := first.Wait(); err == nil || errors.As(err, &held) {
		t.Errorf("the failed write: %v", err)
	}
	for _, result := range []*Result{second, third, producer.Publish(write("a", "4"))} {
		if _, err := result.Wait(); !errors.As(err, &held) {
			t.Errorf("a write behind the failed one: %v", err)
		}
	}
	other := producer.Publish(write("b", "5"))
	received = append(received, <-requests...)
	answers <- http.StatusOK
	if id, err := other.Wait(); id != "id of 5" {
		t.Error("another slot: ", id, err)
	}
	if err := producer.Resume("a"); err != nil {
		t.Fatal(err)
	}
	var again []*Result
	for n := range 3 {
		again = append(again, producer.Publish(write("a", fmt.Sprint(n+1))))
	}
	for len(received) < 5 {
		received = append(received, <-requests...)
		answers <- http.StatusOK
	}
	for n, result := range again {
		if id, err := result.Wait(); id != fmt.Sprint("id of ", n+1) {
			t.Error(id, err)
		}
	}
	if !slices.Equal(received, []string{"1", "5", "1", "2", "3"}) {
		t.Error("the topic received ", received)
	}
}

func TestTheSameBytesAreSentUntilTheyAreTaken(t *testing.T) {
	producer, requests, answers := serve(t)
	result := producer.Publish(write("a", "1"))
	for _, status := range []int{503, 429, 200} {
		<-requests
		answers <- status
	}
	if id, err := result.Wait(); id != "id of 1" {
		t.Error(id, err)
	}
}
